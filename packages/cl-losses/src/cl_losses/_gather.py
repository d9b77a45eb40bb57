"""Collect rows from every process, with the gradient that a single process would have."""

import torch
from torch import Tensor, distributed


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward sums over processes: every process's loss depends on these rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int], group: distributed.ProcessGroup | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.group, ctx.sizes = group, sizes
        # Collectives want equal shapes: pad to the longest, cut afterwards. The list form of all_gather is the only
        # one that no release of torch since 2.4 deprecates.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        # all_reduce, not reduce_scatter: gloo has no reduce_scatter, and d = 128 columns are little to send.
        # A copy, because autograd may still need the tensor it hands over.
        grad = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad, group=ctx.group)
        start = sum(ctx.sizes[: distributed.get_rank(ctx.group)])
        return grad[start : start + ctx.sizes[distributed.get_rank(ctx.group)]], None, None


def is_parallel(group: distributed.ProcessGroup | None) -> bool:
    """Whether there is more than one process to collect from."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1


def gather_sizes(n: int, *, device: torch.device, group: distributed.ProcessGroup | None) -> list[int]:
    """The number of rows on each process, which may differ. Waits for the device: the sizes are needed on the host."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(sizes, torch.full((1,), n, dtype=torch.int64, device=device), group=group)
    return torch.cat(sizes).tolist()


def gather_rows(rows: Tensor, *, sizes: list[int], group: distributed.ProcessGroup | None) -> Tensor:
    """The rows of all processes in the order of their ranks, (sum(sizes), ...), differentiable.

    The gradient that reaches `rows` is the sum over the processes of the gradients of their losses.
    """
    return _GatherRows.apply(rows, sizes, group)
