"""The engine of the contrastive losses: tiles, the pairs left out of them, sums and gradients, against dense masks."""

import math

import pytest
import torch
from cl_losses._log_sum_exp import SMALLEST_IN_FLOAT32, SMALLEST_WITHOUT_MAXIMUM, Sums, add_gradients, choose, log_sums
from cl_losses._tiles import Band, Excluded, Tiles, cuts, kept_numbers
from cl_losses._unit import through_norm_, unit_rows
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

# With running maxima, with tiles of float64, with tiles of the dtype of the embeddings.
TEMPERATURES = [0.0005, 0.01, 0.2]


def unit(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1).to(dtype)


def numbers(n: int, *, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_mask(excluded: Excluded, m: int, n: int) -> Tensor:
    """True where a pair is no candidate, by the sentence in the docstring of Excluded, pair by pair."""

    def lies_in(bands: tuple[Band, ...], row: int, column: int) -> bool:
        return any(band.begin <= row < band.end and column == row + band.offset for band in bands)

    def apart(row: int, column: int) -> bool:
        if excluded.row_sides is None:
            return False
        a, b = int(excluded.row_sides[row]), int(excluded.column_sides[column])
        return abs(a) != abs(b) and (a < 0 or b < 0)

    def is_excluded(row: int, column: int) -> bool:
        same = excluded.row_cells is not None and bool(excluded.row_cells[row] == excluded.column_cells[column])
        same_cell = same and not lies_in(excluded.spared, row, column)
        return lies_in(excluded.bands, row, column) or same_cell or apart(row, column)

    return torch.tensor([[is_excluded(row, column) for column in range(n)] for row in range(m)])


def cells(n: int, *, seed: int, kinds: int = 3) -> Tensor:
    return torch.randint(kinds, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def sides(n: int, *, seed: int) -> Tensor:
    """Of three domains, about half of the rows without label."""
    generator = torch.Generator().manual_seed(seed)
    sign = 1 - 2 * torch.randint(2, (n,), generator=generator, dtype=torch.int32)
    return sign * torch.randint(1, 4, (n,), generator=generator, dtype=torch.int32)


def rectangles(m: int = 11, n: int = 14) -> dict[str, Excluded]:
    """Pairs to leave out of m x n."""
    bands = (Band(0, m, 2), Band(3, 7, -3))
    row_cells, column_cells = cells(m, seed=5), cells(n, seed=6)
    of_rows, of_columns = sides(m, seed=8), sides(n, seed=9)
    return {
        "nothing": Excluded(),
        "one band": Excluded((Band(0, m, 0),)),
        "bands": Excluded(bands),
        "a band beyond the columns": Excluded((Band(0, m, n - 4), Band(0, m, -5))),
        "a row and a column": Excluded(
            tuple(Band(4, 5, offset) for offset in range(-4, n - 4))
            + tuple(Band(row, row + 1, 9 - row) for row in range(m))
        ),
        "cells": Excluded((), row_cells, column_cells),
        "all but spared cells": Excluded(
            (), torch.zeros(m, dtype=torch.int32), torch.zeros(n, dtype=torch.int32), (Band(0, m, 1), Band(2, 6, 4))
        ),
        "bands and cells": Excluded(bands, row_cells, column_cells, (Band(1, 9, 1), Band(0, 4, 5))),
        "sides": Excluded((), None, None, (), of_rows, of_columns),
        "sides, none negative": Excluded((), None, None, (), of_rows.abs(), of_columns.abs()),
        "sides, all negative": Excluded((), None, None, (), -of_rows.abs(), -of_columns.abs()),
        "bands, cells and sides": Excluded(
            bands, row_cells, column_cells, (Band(1, 9, 1), Band(0, 4, 5)), of_rows, of_columns
        ),
    }


def squares(m: int = 14) -> dict[str, Excluded]:
    """Pairs to leave out of m x m, the same seen from rows and from columns."""
    half, of_rows, of_sides = m // 2, cells(m, seed=7), sides(m, seed=10)
    other_views = (Band(0, half, half), Band(half, m, -half))
    return {
        "nothing": Excluded(),
        "itself": Excluded((Band(0, m, 0),)),
        "itself and the other view": Excluded((Band(0, m, 0), *other_views)),
        "itself and its cell but for the other view": Excluded((Band(0, m, 0),), of_rows, of_rows, other_views),
        "itself and sides": Excluded((Band(0, m, 0),), None, None, (), of_sides, of_sides),
        "itself, cells and sides": Excluded((Band(0, m, 0),), of_rows, of_rows, other_views, of_sides, of_sides),
    }


RECTANGLES, SQUARES = list(rectangles()), list(squares())


def dense_logarithms(x: Tensor, y: Tensor, excluded: Excluded, *, scale: float) -> Sums:
    """L and L' with the whole matrix; +inf where there is no candidate."""
    out = dense_mask(excluded, len(x), len(y))
    exponents = (scale * math.log(2) * x.double() @ y.double().T).masked_fill(out, -math.inf)
    return Sums(
        (exponents.logsumexp(1) / math.log(2)).masked_fill(out.all(1), math.inf),
        (exponents.logsumexp(0) / math.log(2)).masked_fill(out.all(0), math.inf),
    )


def dense_gradients(
    x: Tensor, y: Tensor, excluded: Excluded, *, scale: float, weights: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """What add_gradients says that it adds, pair by pair of the dense matrix."""
    out, sums = dense_mask(excluded, len(x), len(y)), dense_logarithms(x, y, excluded, scale=scale)
    exponents = (scale * x.double() @ y.double().T).masked_fill(out, -math.inf)
    p, q = torch.exp2(exponents - sums.rows[:, None]), torch.exp2(exponents - sums.columns)
    both = weights[0][:, None] * p + weights[1] * q
    return both @ y.double(), both.T @ x.double()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)


# Sums


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", RECTANGLES)
@pytest.mark.usefixtures("small_tiles")
def test_log_sums_of_rows_and_columns_are_those_of_the_dense_matrix(name, temperature):
    x, y, excluded = unit(11, 5, seed=1), unit(14, 5, seed=2), rectangles()[name]
    arithmetic = choose(temperature, torch.float64)
    actual = log_sums(x, y, arithmetic=arithmetic, excluded=excluded, columns=True)
    assert_close(actual, dense_logarithms(x, y, excluded, scale=arithmetic.scale), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.usefixtures("small_tiles")
def test_log_sums_of_a_tensor_with_itself_are_those_of_the_dense_matrix(name, temperature):
    x, excluded = unit(14, 5, seed=1), squares()[name]
    arithmetic = choose(temperature, torch.float64)
    actual = log_sums(x, x, arithmetic=arithmetic, excluded=excluded)
    assert_close(actual, dense_logarithms(x, x, excluded, scale=arithmetic.scale), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_log_sums_of_columns_that_are_not_wanted_are_infinite(temperature):
    x, y = unit(6, 5, seed=1), unit(9, 5, seed=2)
    sums = log_sums(x, y, arithmetic=choose(temperature, torch.float64), excluded=Excluded())
    assert (sums.columns == math.inf).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_log_sums_without_any_candidate_are_infinite(temperature):
    x, y = unit(6, 5, seed=1), unit(6, 5, seed=2)
    everything = Excluded((), torch.zeros(6, dtype=torch.int32), torch.zeros(6, dtype=torch.int32))
    sums = log_sums(x, y, arithmetic=choose(temperature, torch.float64), excluded=everything, columns=True)
    assert (torch.cat(sums) == math.inf).all()


# Tiles are 512 x 512.
@pytest.mark.parametrize(("m", "temperature"), [(511, 0.2), (512, 0.2), (513, 0.0005), (1025, 0.2)])
def test_log_sums_of_several_tiles_are_those_of_the_dense_matrix(m, temperature):
    x, y = unit(m, 6, seed=1), unit(1024 - m // 2, 6, seed=2)
    arithmetic = choose(temperature, torch.float64)
    actual = log_sums(x, y, arithmetic=arithmetic, excluded=Excluded(), columns=True)
    exponents = arithmetic.scale * math.log(2) * x @ y.T
    expected = Sums(*(exponents.logsumexp(dim) / math.log(2) for dim in (1, 0)))
    assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("temperature", [SMALLEST_IN_FLOAT32, 0.2, 1.0])
@pytest.mark.usefixtures("small_tiles")
def test_log_sums_of_float32_are_off_by_a_cosines_error(temperature):
    x, y = unit(40, 16, seed=1, dtype=torch.float32), unit(30, 16, seed=2, dtype=torch.float32)
    arithmetic = choose(temperature, torch.float32)
    sums = log_sums(x, y, arithmetic=arithmetic, excluded=Excluded(), columns=True)
    expected = dense_logarithms(x, y, Excluded(), scale=arithmetic.scale)
    error = (torch.cat(sums).double() - torch.cat(expected)).abs().max()
    assert error <= 1e-7 * arithmetic.scale + 2e-7 * torch.cat(expected).abs().max()


# Gradients


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", RECTANGLES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_of_rows_and_columns_are_those_of_the_dense_matrix(name, temperature):
    x, y, excluded = unit(11, 5, seed=1), unit(14, 5, seed=2), rectangles()[name]
    arithmetic, weights = choose(temperature, torch.float64), (numbers(11, seed=3), numbers(14, seed=4))
    sums = log_sums(x, y, arithmetic=arithmetic, excluded=excluded, columns=True)
    dx, dy = torch.zeros_like(x), torch.zeros_like(y)
    add_gradients(x, y, dx, dy, sums=sums, weights=weights, arithmetic=arithmetic, excluded=excluded)
    expected = dense_gradients(x, y, excluded, scale=arithmetic.scale, weights=weights)
    assert_close((dx, dy), expected, rtol=0, atol=2e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_of_a_tensor_with_itself_are_those_of_the_dense_matrix(name, temperature):
    x, excluded = unit(14, 5, seed=1), squares()[name]
    arithmetic, g = choose(temperature, torch.float64), numbers(14, seed=3)
    sums = log_sums(x, x, arithmetic=arithmetic, excluded=excluded)
    dx = torch.zeros_like(x)
    add_gradients(x, x, dx, None, sums=sums, weights=(g, g), arithmetic=arithmetic, excluded=excluded)
    as_row, as_column = dense_gradients(x, x, excluded, scale=arithmetic.scale, weights=(g, torch.zeros_like(g)))
    assert_close(dx, as_row + as_column, rtol=0, atol=2e-12)


def test_dense_gradients_are_the_gradients_of_dense_logarithms():
    x, y, excluded = unit(6, 4, seed=1), unit(8, 4, seed=2), rectangles(6, 8)["bands and cells"]
    weights = numbers(6, seed=3), numbers(8, seed=4)
    expected = dense_gradients(x, y, excluded, scale=7.0, weights=weights)
    x, y = x.requires_grad_(), y.requires_grad_()
    sums = dense_logarithms(x, y, excluded, scale=7.0)
    total = sum((weight * part).sum() for weight, part in zip(weights, sums, strict=True))
    actual = torch.autograd.grad(total / 7, (x, y))
    assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_are_added_to_what_is_there(temperature):
    x, y = unit(6, 5, seed=1), unit(9, 5, seed=2)
    arithmetic = choose(temperature, torch.float64)
    arguments = {
        "sums": log_sums(x, y, arithmetic=arithmetic, excluded=Excluded(), columns=True),
        "weights": (numbers(6, seed=3), numbers(9, seed=4)),
        "arithmetic": arithmetic,
        "excluded": Excluded(),
    }
    fresh, more = (torch.zeros_like(x), torch.zeros_like(y)), (torch.ones_like(x), torch.ones_like(y))
    add_gradients(x, y, *fresh, **arguments)
    add_gradients(x, y, *more, **arguments)
    assert_close(more, tuple(part + 1 for part in fresh), rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_of_rows_are_the_same_if_columns_want_none(temperature):
    x, y = unit(6, 5, seed=1), unit(9, 5, seed=2)
    arithmetic = choose(temperature, torch.float64)
    arguments = {
        "sums": log_sums(x, y, arithmetic=arithmetic, excluded=Excluded(), columns=True),
        "weights": (numbers(6, seed=3), numbers(9, seed=4)),
        "arithmetic": arithmetic,
        "excluded": Excluded(),
    }
    both, alone = torch.zeros_like(x), torch.zeros_like(x)
    add_gradients(x, y, both, torch.zeros_like(y), **arguments)
    add_gradients(x, y, alone, None, **arguments)
    assert_close(alone, both, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_without_sums_of_columns_are_those_of_the_rows(temperature):
    x, y = unit(11, 5, seed=1), unit(14, 5, seed=2)
    arithmetic, g = choose(temperature, torch.float64), numbers(11, seed=3)
    sums = log_sums(x, y, arithmetic=arithmetic, excluded=Excluded())  # +inf for columns
    dx, dy = torch.zeros_like(x), torch.zeros_like(y)
    weights = g, numbers(14, seed=4)
    add_gradients(x, y, dx, dy, sums=sums, weights=weights, arithmetic=arithmetic, excluded=Excluded())
    expected = dense_gradients(
        x, y, Excluded(), scale=arithmetic.scale, weights=(g, torch.zeros(14, dtype=torch.float64))
    )
    assert_close((dx, dy), expected, rtol=0, atol=2e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_of_float64_tiles_may_be_gathered_in_float32(temperature):
    x = unit(14, 5, seed=1)
    arithmetic, g = choose(temperature, torch.float32)._replace(dtype=torch.float64), numbers(14, seed=3)
    sums = log_sums(x, x, arithmetic=arithmetic, excluded=Excluded())
    wide, narrow = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.float32)
    for dx in (wide, narrow):
        add_gradients(x, x, dx, None, sums=sums, weights=(g, g), arithmetic=arithmetic, excluded=Excluded())
    assert_close(narrow.double(), wide, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kept", [0, 1, 16, 40, 100, 124])  # 124: all numbers of the tiles of 14 rows
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_are_the_same_to_the_bit_whatever_tiles_are_kept(temperature, kept):
    x, excluded = unit(14, 5, seed=1), squares()["itself and the other view"]
    arithmetic, g = choose(temperature, torch.float64), numbers(14, seed=3)
    found = []
    for store in (None, x.new_empty(kept)):
        sums = log_sums(x, x, arithmetic=arithmetic, excluded=excluded, kept=store)
        dx = torch.zeros_like(x)
        add_gradients(x, x, dx, None, sums=sums, weights=(g, g), arithmetic=arithmetic, excluded=excluded, kept=store)
        found.append(dx)
    assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_gradients_leave_kept_tiles_alone(temperature):
    x, arithmetic, g = unit(14, 5, seed=1), choose(temperature, torch.float64), numbers(14, seed=3)
    kept = x.new_empty(124)
    sums = log_sums(x, x, arithmetic=arithmetic, excluded=Excluded(), kept=kept)
    before = kept.clone()
    add_gradients(
        x,
        x,
        torch.zeros_like(x),
        None,
        sums=sums,
        weights=(g, g),
        arithmetic=arithmetic,
        excluded=Excluded(),
        kept=kept,
    )
    assert_close(kept, before, rtol=0, atol=0)


# Precision


@pytest.mark.parametrize(
    ("temperature", "given", "dtype"),
    [
        (SMALLEST_IN_FLOAT32, torch.float32, torch.float32),
        (0.999 * SMALLEST_IN_FLOAT32, torch.float32, torch.float64),
        (1.0, torch.float64, torch.float64),
        (math.inf, torch.float32, torch.float32),
    ],
)
def test_tiles_are_float64_for_a_low_temperature_or_float64_embeddings(temperature, given, dtype):
    assert choose(temperature, given).dtype == dtype


@pytest.mark.parametrize("step", [0.999, 1.001])
def test_maxima_are_kept_below_a_six_hundredth_only(step):
    assert choose(step * SMALLEST_WITHOUT_MAXIMUM, torch.float64).maximum == (step < 1)


def test_the_sum_of_many_equal_rows_does_not_overflow_where_maxima_are_just_not_kept():
    x = torch.ones(2000, 1, dtype=torch.float64)
    arithmetic = choose(SMALLEST_WITHOUT_MAXIMUM, torch.float64)
    sums = log_sums(x, x, arithmetic=arithmetic, excluded=Excluded())
    assert_close(sums.rows, torch.full_like(sums.rows, arithmetic.scale + math.log2(2000)), rtol=1e-14, atol=0)


def test_the_sum_of_opposite_rows_does_not_vanish_where_maxima_are_just_not_kept():
    x = torch.ones(3, 1, dtype=torch.float64)
    arithmetic = choose(SMALLEST_WITHOUT_MAXIMUM, torch.float64)
    sums = log_sums(x, -x, arithmetic=arithmetic, excluded=Excluded())
    assert_close(sums.rows, torch.full_like(sums.rows, math.log2(3) - arithmetic.scale), rtol=1e-14, atol=0)


# Pairs left out


@pytest.mark.parametrize("value", [0.0, -math.inf])
def test_excluded_fills_a_band_in_every_tile_for_every_offset(value):
    m, n = 7, 9
    for offset in range(-m - 1, n + 2):
        for begin, end in ((0, m), (2, 5), (3, 3)):
            excluded = Excluded((Band(begin, end, offset),))
            expected = torch.ones(m, n).masked_fill(dense_mask(excluded, m, n), value)
            for size in (1, 3, 4, 10):
                whole = torch.ones(m, n)
                for row in cuts(0, m, size):
                    for column in cuts(0, n, size):
                        tile = torch.ones(row.stop - row.start, column.stop - column.start)
                        excluded.fill_(tile, rows=row, columns=column, value=value)
                        whole[row, column] = tile
                assert torch.equal(whole, expected), (offset, begin, end, size)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("name", RECTANGLES)
def test_excluded_fills_tile_by_tile_what_its_docstring_says(name, size):
    excluded, whole = rectangles()[name], torch.ones(11, 14)
    for row in cuts(0, 11, size):
        for column in cuts(0, 14, size):
            tile = torch.ones(row.stop - row.start, column.stop - column.start)
            excluded.fill_(tile, rows=row, columns=column, value=-math.inf)
            whole[row, column] = tile
    assert torch.equal(whole == -math.inf, dense_mask(excluded, 11, 14))


# Tiles


@pytest.mark.parametrize(("begin", "end", "size"), [(0, 0, 4), (0, 3, 4), (0, 4, 4), (0, 9, 4), (3, 12, 4), (5, 5, 1)])
def test_cuts_cover_a_stretch_once_in_order(begin, end, size):
    slices = list(cuts(begin, end, size))
    assert [place for part in slices for place in range(part.start, part.stop)] == list(range(begin, end))
    assert all(0 < part.stop - part.start <= size for part in slices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [0, 1, 63, 64, 65, 300, 543, 544, 1087, 1088, 10**6])
def test_kept_numbers_never_exceed_their_budget(monkeypatch, budget, dtype):
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)
    monkeypatch.setattr("cl_losses._tiles.CPU_KEPT_BYTES", budget)
    for rows in range(30):
        assert kept_numbers(rows, torch.empty(0, dtype=dtype)) * dtype.itemsize <= budget


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_kept_numbers_hold_all_upper_tiles_and_hardly_more_if_they_fit(monkeypatch, size):
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", size)
    for rows in range(30):
        upper = sum((a.stop - a.start) * (rows - a.start) for a in cuts(0, rows, size))
        assert upper <= kept_numbers(rows, torch.empty(0)) <= upper + size**2 / 8


def test_kept_numbers_of_real_tiles_stay_within_ten_mebibytes():
    kept = [kept_numbers(rows, torch.empty(0, dtype=torch.float64)) for rows in (510, 512, 1026, 4096, 65536)]
    assert kept[:3] == [510**2, 512**2, 513 * (1026 + 512)]
    assert kept[3] == kept[4] == 5 * 512**2


def shapes_of_tiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """The places of the tiles that are asked for from now on: first row, rows, first column, columns."""
    places, next_tile = [], Tiles.next

    def spy(self: Tiles, rows: slice, columns: slice) -> tuple[Tensor, bool]:
        places.append((rows.start, rows.stop - rows.start, columns.start, columns.stop - columns.start))
        return next_tile(self, rows, columns)

    monkeypatch.setattr(Tiles, "next", spy)
    return places


@pytest.mark.usefixtures("small_tiles")
def test_a_tensor_with_itself_takes_the_tiles_on_and_above_the_diagonal_only(monkeypatch):
    places, x = shapes_of_tiles(monkeypatch), unit(9, 5, seed=1)
    log_sums(x, x, arithmetic=choose(0.1, torch.float64), excluded=Excluded())
    assert places == [(0, 4, 0, 4), (0, 4, 4, 4), (0, 4, 8, 1), (4, 4, 4, 4), (4, 4, 8, 1), (8, 1, 8, 1)]


@pytest.mark.usefixtures("small_tiles")
def test_two_tensors_take_every_tile_once(monkeypatch):
    places = shapes_of_tiles(monkeypatch)
    log_sums(
        unit(5, 3, seed=1), unit(9, 3, seed=2), arithmetic=choose(0.1, torch.float64), excluded=Excluded(), columns=True
    )
    assert places == [(0, 4, 0, 4), (0, 4, 4, 4), (0, 4, 8, 1), (4, 1, 0, 4), (4, 1, 4, 4), (4, 1, 8, 1)]


@pytest.mark.usefixtures("small_tiles")
def test_tiles_that_are_not_kept_share_the_room_of_one():
    like = torch.empty(0)
    tiles = Tiles(like, rows=9, columns=9, kept=like.new_empty(16))
    kept, *others = [tiles.next(slice(0, 4), slice(start, start + 4))[0] for start in (0, 4, 5)]
    assert len({tile.data_ptr() for tile in others}) == 1
    assert kept.data_ptr() != others[0].data_ptr()


# The sphere


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_are_those_of_normalize(dtype):
    a, b = unit(4, 5, seed=1) * 3, unit(3, 5, seed=2)
    a[1], b[2] = 0, 1e-13 * b[2]
    rows, norm = unit_rows(a, b, dtype=dtype)
    both = torch.cat([a, b])
    tolerance = 1e-7 if dtype == torch.float32 else 1e-15
    assert_close(rows.double(), F.normalize(both, dim=1), rtol=0, atol=tolerance)
    assert_close(norm.double(), both.norm(dim=1), rtol=tolerance, atol=0)


@pytest.mark.parametrize("at_a_time", [1, 11, 2**19])
def test_gradients_go_through_the_norm_as_through_normalize(monkeypatch, at_a_time):
    monkeypatch.setattr("cl_losses._unit.NUMBERS_AT_A_TIME", at_a_time)
    z = unit(7, 5, seed=1) * torch.logspace(-3, 3, 7, dtype=torch.float64)[:, None]
    z[2], z[4] = 0, 1e-15 * z[4]
    grad = unit(7, 5, seed=3)
    rows, norm = unit_rows(z, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.normalize(z.requires_grad_(), dim=1), z, grad)
    assert_close(through_norm_(grad.clone(), unit=rows, norm=norm), expected, rtol=1e-12, atol=1e-12)
