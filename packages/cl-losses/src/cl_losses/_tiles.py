"""The pairs of rows and columns, tile by tile, and which of them are no candidates."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A tile of 512 x 512 float32 is 1 MiB, which stays in a core's cache between the operations on it. A GPU needs larger
# ones to be busy, and keeps 16 MiB in its L2 cache.
CPU_TILE, GPU_TILE = 512, 2048
# Tiles that the forward pass keeps, so that backward need not compute them again: a quarter of the work, while all fit.
CPU_KEPT_BYTES, GPU_KEPT_BYTES = 10 * 2**20, 64 * 2**20


class Band(NamedTuple):
    """The pairs (row, row + offset) for begin <= row < end: a stretch of a diagonal."""

    begin: int
    end: int
    offset: int


class Excluded(NamedTuple):
    """The pairs that are no candidates.

    `bands` are none; nor are rows and columns of the same cell, if there are cells (int32, (rows,) and (columns,)),
    but for the pairs of `spared`; nor, if there are sides (likewise), those of sides whose absolute values differ where
    one of the two is negative.
    """

    bands: tuple[Band, ...] = ()
    row_cells: Tensor | None = None
    column_cells: Tensor | None = None
    spared: tuple[Band, ...] = ()
    row_sides: Tensor | None = None
    column_sides: Tensor | None = None

    def fill_(self, tile: Tensor, *, rows: slice, columns: slice, value: float) -> None:
        """Write `value` where the pairs of `rows` x `columns` are no candidates."""
        if self.row_cells is not None and self.column_cells is not None:
            same = self.row_cells[rows, None] == self.column_cells[None, columns]
            for part in _parts(same, self.spared, rows=rows, columns=columns):
                part.fill_(False)
            tile.masked_fill_(same, value)
        if self.row_sides is not None and self.column_sides is not None:
            a, b = self.row_sides[rows, None], self.column_sides[None, columns]
            tile.masked_fill_((a.abs() != b.abs()).logical_and_((a < 0) | (b < 0)), value)
        for part in _parts(tile, self.bands, rows=rows, columns=columns):
            part.fill_(value)


def _parts(tile: Tensor, bands: tuple[Band, ...], *, rows: slice, columns: slice) -> Iterator[Tensor]:
    """What of the bands lies in the tile, as views."""
    for band in bands:
        begin = max(band.begin, rows.start, columns.start - band.offset)
        end = min(band.end, rows.stop, columns.stop - band.offset)
        if begin < end:
            across = slice(begin + band.offset - columns.start, end + band.offset - columns.start)
            yield tile[begin - rows.start : end - rows.start, across].diagonal()


def tile_size(like: Tensor) -> int:
    """Rows and columns of a tile on the device of `like`."""
    return CPU_TILE if like.device.type == "cpu" else GPU_TILE


def cuts(begin: int, end: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size`."""
    for start in range(begin, end, size):
        yield slice(start, min(start + size, end))


class Tiles:
    """Room for one tile after the other, and for what is derived from it; some are kept from forward to backward.

    Args:
        like: Gives dtype and device.
        rows: Number of rows.
        columns: Number of columns.
        kept: Flat storage of the tiles that are kept, the first ones in the order of the loops; None for no storage.
    """

    def __init__(self, like: Tensor, *, rows: int, columns: int, kept: Tensor | None) -> None:
        self.like, self.size = like, tile_size(like)
        self.area = min(rows, self.size) * min(columns, self.size)
        self.kept, self.used = kept, 0
        # Made when they are needed: for a small batch, fresh memory costs as much as what is written to it.
        self.space: Tensor | None = None
        self.derived: Tensor | None = None

    def next(self, rows: slice, columns: slice) -> tuple[Tensor, bool]:
        """Room for the tile of these rows and columns, and whether it is kept."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        area = shape[0] * shape[1]
        if self.kept is not None and self.used + area <= self.kept.numel():
            self.used += area
            return self.kept[self.used - area : self.used].view(shape), True
        if self.space is None:
            self.space = self.like.new_empty(self.area)
        return self.space[:area].view(shape), False

    def scratch(self, tile: Tensor) -> Tensor:
        """Work space of the shape of `tile`."""
        if self.derived is None:
            self.derived = self.like.new_empty(self.area)
        return self.derived[: tile.numel()].view(tile.shape)


def kept_numbers(rows: int, like: Tensor) -> int | torch.SymInt:
    """How many numbers the kept tiles of `rows` x `rows`, the upper ones only, take at most: all of them or what fits.

    A formula without steps, not the sum of the tiles: the compiler follows it, whatever the number of rows.
    """
    budget = CPU_KEPT_BYTES if like.device.type == "cpu" else GPU_KEPT_BYTES
    every = rows * (rows + torch.sym_min(rows, tile_size(like))) // 2
    return torch.sym_min(every, budget // like.element_size())
