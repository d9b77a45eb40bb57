"""The batch that a loss is checked with, and how processes share it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed


class Batch(NamedTuple):
    """Inputs, the dimension of each that is split, and the weight that all processes share."""

    inputs: tuple[Tensor, ...]
    dims: tuple[int, ...]
    weight: Tensor

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[self.dims[0]]

    def shares(self, world: int, kind: str) -> list[int]:
        """Rows of each process: as equal as can be, or growing with the rank."""
        if kind == "uneven":
            parts = [2 * rank + 1 for rank in range(world)]
            ends = [round(self.rows * sum(parts[: rank + 1]) / sum(parts)) for rank in range(world)]
        else:
            ends = [self.rows // world * (rank + 1) for rank in range(world)]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def part(self, begin: int, length: int) -> tuple[Tensor, ...]:
        """`length` rows of every input."""
        return tuple(x.narrow(dim, begin, length) for x, dim in zip(self.inputs, self.dims, strict=True))

    def of_rank(self, rank: int, world: int, kind: str) -> tuple[Tensor, ...]:
        """What a process is given: its share, or, for copies, the first share whatever its rank."""
        shares = self.shares(world, kind)
        return self.part(0 if kind == "copies" else sum(shares[:rank]), shares[rank])

    def together(self, world: int, kind: str) -> tuple[Tensor, ...]:
        """What all processes are given, in one."""
        parts = [self.of_rank(rank, world, kind) for rank in range(world)]
        return tuple(torch.cat(some, dim=dim) for some, dim in zip(zip(*parts, strict=True), self.dims, strict=True))


def make_batch(inputs: Sequence[Tensor] | None, dims: Sequence[int] | None, *, rows_at_least: int) -> Batch:
    if distributed.is_available() and distributed.is_initialized():
        raise ValueError("`check_distributed` must be called where torch.distributed is not initialised.")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = max(12, rows_at_least)
    inputs = (normal(rows, 8), normal(rows, 8)) if inputs is None else inputs
    dims = (0,) * len(inputs) if dims is None else dims
    if len(inputs) == 0 or len(dims) != len(inputs):
        raise ValueError(f"`batch_dims` must be as many as `inputs`, at least 1, got {len(dims)} and {len(inputs)}.")
    if any(x.ndim <= dim for x, dim in zip(inputs, dims, strict=True)):
        raise ValueError(f"`inputs` must have the dimensions of `batch_dims`, {tuple(dims)}.")
    lengths = [x.shape[dim] for x, dim in zip(inputs, dims, strict=True)]
    if len(set(lengths)) > 1 or lengths[0] < rows_at_least:
        raise ValueError(f"`inputs` must hold one number of rows, at least {rows_at_least}, got {lengths}.")
    floating = [x for x in inputs if x.is_floating_point()]
    if not floating:
        raise ValueError("`inputs` must hold a floating point tensor: its gradient is what is checked.")
    wide = tuple(x.detach().double() if x.is_floating_point() else x for x in inputs)
    return Batch(wide, tuple(dims), normal(floating[0].shape[-1], floating[0].shape[-1]))
