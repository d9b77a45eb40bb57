"""BYOL's target network: a copy that follows the trained one by an exponential moving average."""

import copy
import math
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(step: int, *, base: float, total_steps: int) -> float:
    r"""BYOL's decay of the target after `step` steps of training, from `base` to 1 by half a cosine.

    With $k$ for `step` and $K$ for `total_steps`,

    $$\tau_k = 1 - (1 - \tau_\mathrm{base}) \frac{\cos(\pi k / K) + 1}{2}.$$

    Args:
        step: k, from 0 to K: how many updates were made before this one.
        base: tau_base, in [0, 1]; BYOL: 0.97 for 40 epochs, 0.99 for 100 and 300, 0.996 for 1000.
        total_steps: K, the number of steps of the whole training, >= 1.

    Returns:
        tau_k, the weight of the old value.

    Raises:
        ValueError: An argument is out of its range.

    Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733, section 3.3.
    """
    _check_decay("base", base)
    if total_steps < 1:
        raise ValueError(f"`total_steps` must be at least 1, got {total_steps}.")
    if not 0 <= step <= total_steps:  # to stay at 1 would stop the target without a word
        raise ValueError(f"`step` must be from 0 to `total_steps`, {total_steps}, got {step}.")
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2


class EMA(nn.Module):
    r"""A copy of a module whose parameters follow the module's by an exponential moving average: BYOL's target.

    After the optimiser's step $k$, counted from 0, every parameter of the copy, $\xi$, moves towards the module's,
    $\theta$:

    $$\xi \leftarrow \xi + (1 - \tau_k) (\theta - \xi),$$

    with $\tau_k$ = `ema_decay(k, base=decay, total_steps=total_steps)`, or `decay` throughout without `total_steps`.

    * The copy is not trained: its parameters do not require gradients, and its outputs have none.
    * Only parameters are averaged. BatchNorm's statistics are the copy's own: in training mode it normalises by its
      own batch and records that, as in the authors' code, whose target is in training mode as well.
    * Several processes: apply `sync_batchnorm` to the module first, and the copy is synchronised too. Nothing else is
      exchanged: where DistributedDataParallel keeps the module's parameters equal, the copies stay equal.
    * A step that a gradient scaler skipped (fp16) is none; do not update after it. With Accelerate:
      `if accelerator.sync_gradients and not optimizer.step_was_skipped: target.update(online)`. With a GradScaler:
      `before = scaler.get_scale(); scaler.step(optimizer); scaler.update()`, then
      `if scaler.get_scale() >= before: target.update(online)`, since it lowers its scale after a skipped step only.

    Args:
        module: The network to copy, before DistributedDataParallel or torch.compile wrap it; float32 or float64.
        decay: tau, the weight of the old value, in [0, 1]; where `total_steps` is given, that of the first update.
        total_steps: Number of updates over which the decay rises to 1, >= 1; None for a constant decay.

    Attributes:
        module: The copy; `ema.module.feature_dim` is the encoder's.
        step: Number of updates made, or the last `update`'s `step` + 1; int64, part of `state_dict`. `decay` and
            `total_steps` are not.

    Raises:
        ValueError: An argument is out of its range, `module` is a DistributedDataParallel, or a parameter has less than
            32 bits: the small steps of an average would be rounded away.

    Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733, section 3.1.
    """

    step: Tensor

    def __init__(self, module: nn.Module, decay: float, *, total_steps: int | None = None) -> None:
        super().__init__()
        _check_decay("decay", decay)
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {total_steps}.")
        if isinstance(module, DistributedDataParallel):
            raise ValueError("`module` must be the network itself, got its DistributedDataParallel.")
        _check_precision(module)
        self.decay, self.total_steps = decay, total_steps
        self.module = copy.deepcopy(module, _groups(module)).requires_grad_(False)
        self.training = module.training
        # The count is a number, so that no update waits for the device, and a buffer, so that it is saved.
        device = next((parameter.device for parameter in self.module.parameters()), None)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self._count = 0
        self.register_load_state_dict_post_hook(_refresh)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy makes of the arguments, without gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def update(self, module: nn.Module, *, step: int | None = None) -> None:
        """Move the copy towards the module; call it once after every step that the optimiser took.

        Args:
            module: The network that was copied, or what DistributedDataParallel or torch.compile made of it.
            step: k, the number of the step, from 0; None: that of the updates that were made. A loop that takes steps
                back, weights and buffers, gives its own number, as the updates would be counted on.

        Raises:
            ValueError: `step` is negative or `total_steps` updates were made before, or the module's parameters are not
                those of the copy in number, shape, dtype or device. The copy is then unchanged.
        """
        count = self._count if step is None else step
        if count < 0:
            raise ValueError(f"`step` must be at least 0, got {count}.")
        if self.total_steps is None:
            decay = self.decay
        elif count < self.total_steps:
            decay = ema_decay(count, base=self.decay, total_steps=self.total_steps)
        else:
            times = f"`update` must be called at most `total_steps` times, {self.total_steps}"
            raise ValueError(f"{times}." if step is None else f"{times}, got `step` {step}.")
        targets, sources = _pairs(self.module, module)
        if targets:
            # torch's own average, public where the kernel for many tensors under it, `_foreach_lerp_`, is not
            get_ema_multi_avg_fn(decay)(targets, sources, count)
        self._count = count + 1
        self.step.fill_(self._count)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"decay={self.decay}, total_steps={self.total_steps}"


def _refresh(ema: EMA, _: Any) -> None:
    ema._count = int(ema.step)


def _check_decay(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be from 0 to 1, got {value}.")


def _check_precision(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`module` must have parameters of float32 or float64, {name!r} is {parameter.dtype}.")


def _groups(module: nn.Module) -> dict[int, Any]:
    """A memo by which `deepcopy` shares what cannot be copied: the process groups of synchronised layers."""
    if not distributed.is_available():
        return {}
    held = [value for part in module.modules() for value in vars(part).values()]
    return {id(value): value for value in held if isinstance(value, distributed.ProcessGroup)}


def _pairs(copied: nn.Module, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of both in the same order."""
    _check_precision(copied)  # it may have been converted since it was made
    targets, sources = [], []
    # by order, since wrappers put a prefix before each name
    for target, source in zip_longest(copied.named_parameters(), module.named_parameters()):
        if target is None or source is None or not _alike(target[1], source[1]):
            name, expected, found = (target or source)[0], _described(target), _described(source)
            raise ValueError(f"`module` must have the copy's parameters: {name!r} is {expected} there, got {found}.")
        targets.append(target[1])
        sources.append(source[1])
    return targets, sources


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def _described(item: tuple[str, Tensor] | None) -> str:
    return "missing" if item is None else f"{tuple(item[1].shape)} {item[1].dtype} on {item[1].device}"
