"""Learning rates as pure functions of the step: nothing to save, nothing to step twice by mistake."""

import math
from typing import Literal


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    r"""Factor of the learning rate: linear from 0, then half a cosine back to 0.

    $$f(s) = s / w \ \text{ for } s < w, \qquad
    f(s) = \tfrac12 \bigl(1 + \cos(\pi (s - w) / (T - w))\bigr) \ \text{ for } s \ge w.$$

    As in SimCLR's code the first step has rate 0, and the rate stays 0 after step T.

    Args:
        step: s >= 0, counted in optimiser steps from 0.
        warmup_steps: w >= 0.
        total_steps: T >= w. The authors' count is images * epochs // batch + 1.

    Returns:
        Factor in [0, 1].

    Raises:
        ValueError: An argument is out of its range.
    """
    if step < 0:
        raise ValueError(f"`step` must be at least 0, got {step}.")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"`warmup_steps` must be in [0, total_steps], got {warmup_steps} with `total_steps` {total_steps}."
        )
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def scaled_lr(base: float, batch_size: int, rule: Literal["linear", "sqrt"] = "linear") -> float:
    """Learning rate for a batch of `batch_size` images over all processes.

    Args:
        base: Rate at the rule's unit, > 0: 256 images ("linear": 0.3 in SimCLR, arXiv:2002.05709, section 2.3) or one
            image ("sqrt": 0.075 there, App. B.1). At 4096 images both give 4.8.
        batch_size: Images per optimiser step, over all processes, >= 1.
        rule: "linear": base * batch_size / 256; "sqrt": base * sqrt(batch_size).

    Returns:
        The learning rate.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not base > 0:
        raise ValueError(f"`base` must be positive, got {base}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if rule == "linear":
        return base * batch_size / 256
    if rule == "sqrt":
        return base * math.sqrt(batch_size)
    raise ValueError(f"`rule` must be 'linear' or 'sqrt', got {rule!r}.")
