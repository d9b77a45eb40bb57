r"""The engine: logarithms of the sums over all candidates, and their gradient, in memory linear in the rows.

For rows $x_i$, columns $y_j$ and a scale $c$, with sums over the candidates only,

$$L_i = \log_2 \sum_j 2^{c\, x_i y_j}, \qquad L'_j = \log_2 \sum_i 2^{c\, x_i y_j}.$$

No matrix is stored: a tile of it at a time is computed, used for its rows and its columns, and overwritten. Where rows
and columns are the same, the matrix is symmetric and the tiles on and above the diagonal are all that is computed.
With M rows of d numbers, forward is M^2 d floating point operations, backward 3 M^2 d.

That works because the exponentials are not shifted by a maximum, which would differ between rows: rows are unit
vectors, so exponents lie in [-c, c], and for moderate c nothing overflows or vanishes. `choose` says where every row
and column has to keep its running maximum instead; there the tile is exponentiated once for each.

Base 2, because exp2 is the operation the hardware has: on a CPU exp takes up to three times as long.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cl_losses._precision import widest
from cl_losses._tiles import Excluded, Tiles, cuts

# An error of 1e-7 in a cosine, about what float32 leaves, is one of 1e-7 / temperature in a weight of the gradient:
# 2e-6 at 0.05. Below, unit rows and tiles are float64.
SMALLEST_IN_FLOAT32 = 0.05
# e^600 = 4e260, so that no sum reaches 1.8e308, float64's largest, and e^-600 is far above 2e-308, its smallest.
SMALLEST_WITHOUT_MAXIMUM = 1 / 600


class Arithmetic(NamedTuple):
    """How tiles are computed."""

    scale: float
    dtype: torch.dtype
    maximum: bool


def choose(temperature: float, dtype: torch.dtype) -> Arithmetic:
    """The arithmetic that a temperature needs for embeddings of `dtype`; unit rows are of its dtype."""
    if temperature < SMALLEST_IN_FLOAT32:
        dtype = torch.float64
    return Arithmetic(math.log2(math.e) / temperature, dtype, temperature < SMALLEST_WITHOUT_MAXIMUM)


class Sums(NamedTuple):
    """Base-2 logarithms of the sums: of rows, (m,), and of columns, (n,); +inf where there is no candidate.

    float64, because float32 has a logarithm of 40 to 4e-6 only, and that is an error of the loss and of every weight of
    the row. +inf because its reciprocal weighs nothing in the gradient; whoever takes the value must leave it out.
    """

    rows: Tensor
    columns: Tensor


def log_sums(
    x: Tensor,
    y: Tensor,
    *,
    arithmetic: Arithmetic,
    excluded: Excluded,
    columns: bool = False,
    kept: Tensor | None = None,
) -> Sums:
    """`Sums` of unit rows `x` (m, d) against unit rows `y` (n, d).

    Args:
        x: Rows, of the dtype of `arithmetic`.
        y: Columns, of the same. Where it is `x`, only half of the tiles are computed, and `columns` is without effect.
        arithmetic: c, and whether maxima are kept.
        excluded: Pairs that are no candidates.
        columns: Also the sums of columns; otherwise they are +inf.
        kept: Where to leave the first tiles for `add_gradients`.
    """
    mirror = x is y
    rows = _Running(x.shape[0], x, arithmetic)
    below = rows if mirror else _Running(y.shape[0], y, arithmetic)
    tiles = Tiles(x, rows=x.shape[0], columns=y.shape[0], kept=kept)
    for at_x in cuts(0, x.shape[0], tiles.size):
        scaled = x[at_x] * arithmetic.scale
        for at_y in cuts(at_x.start if mirror else 0, y.shape[0], tiles.size):
            tile, _ = tiles.next(at_x, at_y)
            _fill(tile, scaled, y, arithmetic, rows=at_x, columns=at_y, excluded=excluded)
            rows.add(tile, at_x, dim=1, scratch=tiles)
            if columns or (mirror and at_y.start > at_x.start):
                below.add(tile, at_y, dim=0, scratch=tiles)
    result = rows.logarithm()
    return Sums(result, result if mirror else below.logarithm())


def add_gradients(
    x: Tensor,
    y: Tensor,
    dx: Tensor,
    dy: Tensor | None,
    *,
    sums: Sums,
    weights: tuple[Tensor, Tensor],
    arithmetic: Arithmetic,
    excluded: Excluded,
    kept: Tensor | None = None,
) -> None:
    r"""Add the gradient of $\sum_i g_i L_i + \sum_j h_j L'_j$, divided by c, to `dx` and `dy`.

    With $p_{ij} = 2^{c\, x_i y_j - L_i}$ and $q_{ij} = 2^{c\, x_i y_j - L'_j}$ these are

    $$dx_i = \sum_j (g_i p_{ij} + h_j q_{ij})\, y_j, \qquad dy_j = \sum_i (g_i p_{ij} + h_j q_{ij})\, x_i.$$

    Args:
        x: Rows (m, d).
        y: Columns (n, d). The same tensor as `x`: `dx` gets both sums at once.
        dx: Added to; float32 will do where the rows are float64.
        dy: Added to, or None if it is not wanted. Not used where `x` is `y`.
        sums: L and L'.
        weights: g, (m,), and h, (n,); the same where `x` is `y`.
        arithmetic: As in `log_sums`.
        excluded: Pairs that are no candidates.
        kept: The tiles that `log_sums` left.
    """
    mirror = x is y
    g, h = weights
    if not arithmetic.maximum:
        g = (g * torch.exp2(-sums.rows)).to(x.dtype)
        h = g if mirror else (h * torch.exp2(-sums.columns)).to(x.dtype)
    below = dx if mirror else dy
    tiles = Tiles(x, rows=x.shape[0], columns=y.shape[0], kept=kept)
    for at_x in cuts(0, x.shape[0], tiles.size):
        scaled = None
        for at_y in cuts(at_x.start if mirror else 0, y.shape[0], tiles.size):
            tile, is_kept = tiles.next(at_x, at_y)
            if not is_kept:
                scaled = x[at_x] * arithmetic.scale if scaled is None else scaled
                _fill(tile, scaled, y, arithmetic, rows=at_x, columns=at_y, excluded=excluded)
            # Never into the tile itself: a kept one serves a second backward as well.
            weight = tiles.scratch(tile)
            if arithmetic.maximum:
                torch.sub(tile, sums.rows[at_x, None], out=weight).exp2_().mul_(g[at_x, None])
                weight.add_((tile - sums.columns[at_y]).exp2_().mul_(h[at_y]))
            else:
                torch.add(g[at_x, None], h[at_y], out=weight).mul_(tile)
            weight = weight.to(dx.dtype)
            # A product by itself, and then a sum: `addmm_` of few columns adds each of its terms to what is there, and
            # over a batch of 12,288 rows of 2 float32 numbers that is off by 9e-6, this by 5e-7.
            dx[at_x].add_(weight @ y[at_y].to(dx.dtype))
            if below is not None and not (mirror and at_y.start == at_x.start):
                below[at_y].add_(weight.t() @ x[at_x].to(dx.dtype))


def _fill(
    tile: Tensor, scaled: Tensor, y: Tensor, arithmetic: Arithmetic, *, rows: slice, columns: slice, excluded: Excluded
) -> None:
    """Exponents where maxima are kept, otherwise their powers; -inf or 0 where there is no candidate."""
    torch.mm(scaled, y[columns].t(), out=tile)
    if not arithmetic.maximum:
        tile.exp2_()
    excluded.fill_(tile, rows=rows, columns=columns, value=-math.inf if arithmetic.maximum else 0.0)


class _Running:
    """Sums of powers of 2, relative to a running maximum if asked for."""

    def __init__(self, n: int, like: Tensor, arithmetic: Arithmetic) -> None:
        self.sum = like.new_zeros(n)
        # Finite, so that a row without candidates so far subtracts it from -inf and not -inf from -inf.
        self.maximum = torch.full_like(self.sum, torch.finfo(like.dtype).min) if arithmetic.maximum else None

    def add(self, tile: Tensor, at: slice, *, dim: int, scratch: Tiles) -> None:
        """Count the tile's exponents, or powers if there is no maximum, summed over `dim`."""
        if self.maximum is None:
            self.sum[at].add_(tile.sum(dim))  # not +=, which would write the slice once more
            return
        larger = torch.maximum(self.maximum[at], tile.amax(dim))
        powers = torch.sub(tile, larger.unsqueeze(dim), out=scratch.scratch(tile)).exp2_()
        self.sum[at] = self.sum[at] * torch.exp2(self.maximum[at] - larger) + powers.sum(dim)
        self.maximum[at] = larger

    def logarithm(self) -> Tensor:
        """log2 of the sums, +inf for empty ones."""
        logarithm = self.sum.to(widest(self.sum)).log2()
        if self.maximum is not None:
            logarithm += self.maximum
        return logarithm.masked_fill(self.sum == 0, math.inf)
