"""What processes see of a loss, against what one process with the whole batch sees; and what a difference is due to."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_losses._batch import Batch

Loss = Callable[..., Tensor]


class Seen(NamedTuple):
    value: Tensor
    grad: Tensor


def differentiate(loss_fn: Loss, inputs: Sequence[Tensor], weight: Tensor) -> Seen:
    """Value, and gradient of the weight and of the loss's own parameters, all in one vector."""
    weight = weight.clone().requires_grad_()
    own = [p for p in loss_fn.parameters() if p.requires_grad] if isinstance(loss_fn, nn.Module) else []
    value = loss_fn(*(x @ weight if x.is_floating_point() else x for x in inputs))
    if value.ndim != 0:
        raise ValueError(f"`loss_fn` must return a scalar, got shape {tuple(value.shape)}.")
    found = torch.autograd.grad(value, [weight, *own], allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip([weight, *own], found, strict=True)]
    return Seen(value.detach(), torch.cat([grad.flatten().double() for grad in grads]))


def compare(
    loss_fn: Loss,
    batch: Batch,
    observed: list[dict[tuple[int, str], Seen]],
    world: int,
    kind: str,
    tolerance: float,
) -> float:
    """The largest relative error of a number of processes and kind of shares; raise if it is too large."""
    seen = [observed[rank][world, kind] for rank in range(world)]
    expected = differentiate(loss_fn, batch.together(world, kind), batch.weight)
    value_error, grad_error = _value_error(seen, batch.shares(world, kind), expected), _grad_error(seen, expected)
    if max(value_error, grad_error) <= tolerance:
        return max(value_error, grad_error)
    if value_error > tolerance:
        likely = _explain_value(loss_fn, batch, observed, world, kind, tolerance)
    elif kind == "uneven" and _own_means(loss_fn, batch, seen, world, kind):
        likely = (
            "it is the mean over each process's own rows, and averaging over processes does not weigh them by their "
            "rows. Where all have equally many it may be right: `uneven=False` checks that."
        )
    else:
        likely = _explain_gradient(seen[0].grad, expected.grad, world)
    values = ", ".join(f"{one.value.item():.10g}" for one in seen)
    raise AssertionError(
        f"On {world} processes with {kind} shares the loss is not that of one process: {likely}\n"
        f"values by rank {values}, expected {expected.value.item():.10g} (relative error {value_error:.1e})\n"
        f"averaged gradient: norm {seen[0].grad.norm().item():.10g}, expected {expected.grad.norm().item():.10g} "
        f"(relative error {grad_error:.1e}, tolerance {tolerance:.1e})"
    )


def _value_error(seen: list[Seen], shares: list[int], expected: Seen) -> float:
    """The same value everywhere, or a mean over own rows whose mean is right: the better of the two."""
    values = torch.stack([one.value for one in seen]).double()
    scale = max(abs(expected.value.item()), 1e-300)
    everywhere = (values - expected.value).abs().max().item() / scale
    weights = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    on_average = abs((values * weights).sum().item() - expected.value.item()) / scale
    error = min(everywhere, on_average)
    return math.inf if math.isnan(error) else error


def _grad_error(seen: list[Seen], expected: Seen) -> float:
    error = (seen[0].grad - expected.grad).abs().max() / expected.grad.abs().max().clamp_min(1e-300)
    return math.inf if error.isnan() else error.item()


def _explain_value(
    loss_fn: Loss,
    batch: Batch,
    observed: list[dict[tuple[int, str], Seen]],
    world: int,
    kind: str,
    tolerance: float,
) -> str:
    seen = [observed[rank][world, kind] for rank in range(world)]
    if _own_means(loss_fn, batch, seen, world, kind):
        return "each process contrasts its own rows only; nothing is gathered."
    copies = [observed[rank][world, "copies"] for rank in range(world) if (world, "copies") in observed[rank]]
    if len(copies) < world:
        return "the value itself differs."
    same = differentiate(loss_fn, batch.together(world, "copies"), batch.weight)
    if _value_error(copies, batch.shares(world, "copies"), same) <= tolerance:
        return (
            "it is right when all processes hold the same rows, so rows of other processes are in the wrong place: "
            "gathered in another order than positives or labels assume, or the rank's offset is missing."
        )
    return "the value itself differs."


def _own_means(loss_fn: Loss, batch: Batch, seen: list[Seen], world: int, kind: str) -> bool:
    """Whether each process's value is that of its own rows by themselves."""
    own = [differentiate(loss_fn, batch.of_rank(rank, world, kind), batch.weight).value for rank in range(world)]
    return all(abs(one.value - value) <= 1e-6 * abs(value) for one, value in zip(seen, own, strict=True))


def _explain_gradient(grad: Tensor, expected: Tensor, world: int) -> str:
    factor = ((grad * expected).sum() / expected.square().sum()).item()
    if (grad - factor * expected).norm() <= 1e-6 * expected.norm() * max(abs(factor), 1e-6):
        for what, size in (("1 / the number of processes", 1 / world), ("the number of processes", world)):
            if math.isclose(factor, size, rel_tol=1e-6):
                return (
                    f"the gradient is wrong by a factor of {what}. Averaging divides the sum over processes by their "
                    "number, so a loss over the whole batch needs it as a factor, and a mean over own rows does not."
                )
        if abs(factor - 1) < 1e-4:
            return "the gradient is right but for rounding; a loss that computes in float32 needs `tolerance=1e-5`."
        return f"the gradient is wrong by a factor of {factor:.6g}."
    cosine = torch.cosine_similarity(grad.flatten(), expected.flatten(), dim=0).item()
    return (
        "the value is right, the gradient is not even in direction "
        f"(cosine {cosine:.6f}, norm ratio {(grad.norm() / expected.norm()).item():.4f}): rows of other processes "
        "count in the value but get no gradient. torch.distributed.all_gather has none: gather with one that sums."
    )
