"""NT-Xent written densely, with the bugs that many have written: what `check_distributed` and the tests must notice.

A module of its own, because other processes must be able to import it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cl_losses import testing
from torch import Tensor, distributed
from torch.nn import functional

TEMPERATURE = 0.5


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rows_of_all(rows: Tensor) -> list[Tensor]:
    """The rows of every process, which may have different numbers of them. No gradient."""
    if world() == 1:
        return [rows.detach()]
    sizes = [torch.zeros((), dtype=torch.int64) for _ in range(world())]
    distributed.all_gather(sizes, torch.tensor(len(rows)))
    longest = max(int(size) for size in sizes)
    padded = torch.cat([rows.detach(), rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


class GatherSum(torch.autograd.Function):
    """All rows; the gradient of own ones is the sum of what all processes have for them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = rows_of_all(rows)
        before = parts[: distributed.get_rank()] if world() > 1 else []
        ctx.start, ctx.length = sum(map(len, before)), len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        if world() > 1:
            distributed.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.length]


class ScaleGradient(torch.autograd.Function):
    """The same value, its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


Gather = Callable[[Tensor], Tensor]


def gathered(rows: Tensor) -> Tensor:
    return GatherSum.apply(rows)


def own_only(rows: Tensor) -> Tensor:
    return rows


def own_in_place(rows: Tensor) -> Tensor:
    """Only own rows have a gradient: that of a loss over all rows lacks a factor of the number of processes."""
    parts = rows_of_all(rows)
    if world() > 1:
        parts[distributed.get_rank()] = rows
        return torch.cat(parts)
    return rows


def dense(a: Tensor, b: Tensor) -> Tensor:
    """The mean over all unit rows."""
    z = torch.cat([a, b])
    itself = torch.eye(len(z), dtype=torch.bool)
    logits = (z @ z.t() / TEMPERATURE).masked_fill(itself, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def unit(z: Tensor) -> Tensor:
    return functional.normalize(z, dim=1)


def over_all_rows(z_a: Tensor, z_b: Tensor, *, gather: Gather) -> Tensor:
    return dense(gather(unit(z_a)), gather(unit(z_b)))


def right(z_a: Tensor, z_b: Tensor) -> Tensor:
    return over_all_rows(z_a, z_b, gather=gathered)


def local_negatives(z_a: Tensor, z_b: Tensor) -> Tensor:
    return over_all_rows(z_a, z_b, gather=own_only)


def without_world_factor(z_a: Tensor, z_b: Tensor) -> Tensor:
    return over_all_rows(z_a, z_b, gather=own_in_place)


def with_world_factor_twice(z_a: Tensor, z_b: Tensor) -> Tensor:
    return ScaleGradient.apply(right(z_a, z_b), float(world()))


def in_wrong_order(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The second views' processes are in reverse: an image's other view is not where it is looked for."""
    all_b = gathered(unit(z_b))
    return dense(gathered(unit(z_a)), torch.cat(all_b.split([len(part) for part in rows_of_all(z_b)])[::-1]))


def detached_gather(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Own rows against all, which are torch.distributed.all_gather's and have no gradient; the mean of all rows."""
    a, b = unit(z_a), unit(z_b)
    start = sum(map(len, rows_of_all(a)[: distributed.get_rank()])) if world() > 1 else 0
    all_a, all_b = (torch.cat(rows_of_all(rows)) if world() > 1 else rows for rows in (a, b))
    n, images = len(a), len(all_a)
    itself = torch.cat([torch.arange(n) + start, torch.arange(n) + start + images])
    own, candidates = torch.cat([a, b]), torch.cat([all_a, all_b])
    logits = own @ candidates.t() / TEMPERATURE
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    loss = functional.cross_entropy(logits, (itself + images) % (2 * images), reduction="sum")
    total = loss.detach().clone()
    if world() > 1:
        distributed.all_reduce(total)
    # The value is that of all rows, the gradient is that of own ones.
    return (loss * world() + (total - loss * world()).detach()) / (2 * images)


def raises_on_one(z_a: Tensor, z_b: Tensor) -> Tensor:
    if world() > 1 and distributed.get_rank() == 1:
        raise RuntimeError("planted on process 1")
    return right(z_a, z_b)


def waits_on_one(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Process 1 never gets to the collective that process 0 is in."""
    if world() > 1 and distributed.get_rank() == 1:
        time.sleep(600)
    return right(z_a, z_b)


def of_each_row(z_a: Tensor, z_b: Tensor) -> Tensor:
    return (z_a * z_b).sum(1)


def run_tasks(rank: int, tasks: dict[str, Any], folder: Path) -> None:
    """One process of `check_distributed`, for one task after the other."""
    for name, task in tasks.items():
        (folder / name).mkdir(exist_ok=True)
        testing._run_process(rank, task, str(folder / name), 60)
