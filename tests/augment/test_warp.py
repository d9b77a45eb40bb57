"""Warps and strokes: what known parameters do to known pixels."""

import math
import re

import pytest
import torch
from cl_augment import RandomStroke, RandomWarp, sample_keys, uniform
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close


def images(n: int, c: int = 1, h: int = 16, w: int = 16, *, seed: int = 0) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def some_keys(n: int, *, seed: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=seed, epoch=0)


@pytest.fixture
def draw(monkeypatch):
    """Sets the uniform numbers of a stage: all 1/2 (nothing), but for the given places."""

    def set_draws(stage: str, places: dict[int, float]) -> None:
        def fixed(keys: Tensor, count: int) -> Tensor:
            u = torch.full((len(keys), count), 0.5)
            for place, value in places.items():
                u[:, place] = value
            return u

        monkeypatch.setattr(f"cl_augment.{stage}.uniform", fixed)

    return set_draws


def still(size: int, **arguments) -> RandomWarp:
    """A warp that only does what is asked."""
    return RandomWarp(size, **{"scale": (1.0, 1.0), "degrees": 0.0, "shear": 0.0, **arguments})


def bilinear(image: Tensor, x: float, y: float) -> float:
    """The image (h, w) at a point in pixels; black outside."""
    h, w = image.shape
    x_0, y_0 = math.floor(x), math.floor(y)
    value = 0.0
    for row, column in ((y_0, x_0), (y_0, x_0 + 1), (y_0 + 1, x_0), (y_0 + 1, x_0 + 1)):
        if 0 <= row < h and 0 <= column < w:
            value += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column].item()
    return value


# Warps


@pytest.mark.parametrize(("size", "height", "width"), [(16, 16, 16), (24, 16, 16), (20, 16, 28), (9, 16, 12)])
def test_a_still_warp_is_bilinear_resizing(size, height, width):
    batch = images(3, 2, height, width)
    expected = functional.interpolate(batch, size=(size, size), mode="bilinear", align_corners=False)
    actual = still(size)(batch, some_keys(3))
    if size > min(height, width):  # enlarging, the outermost pixels reach over the border: black here, repeated there
        actual, expected = actual[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1]
    assert_close(actual, expected, rtol=0, atol=1e-5)


def test_a_warp_of_scale_one_half_shows_the_centre(draw):
    draw("_warp", {})
    batch = images(2)
    assert_close(still(8, scale=(0.5, 0.5))(batch, some_keys(2)), batch[..., 4:12, 4:12], rtol=0, atol=1e-5)


def test_a_warp_of_scale_2_shows_black_beyond_the_border(draw):
    draw("_warp", {})
    batch = images(2)
    actual = still(32, scale=(2.0, 2.0))(batch, some_keys(2))
    assert_close(actual, functional.pad(batch, (8, 8, 8, 8)), rtol=0, atol=1e-5)


def test_a_warp_zooms_each_axis_by_its_own_draw(draw):
    draw("_warp", {0: 0.0, 1: 1.0})  # the width by 0.5, the height by 1
    batch = images(2)
    actual = still(16, scale=(0.5, 1.0))(batch, some_keys(2))
    expected = functional.interpolate(batch[..., 4:12], size=(16, 16), mode="bilinear", align_corners=False)
    assert_close(actual[..., 1:-1], expected[..., 1:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("place", "turns"), [(1.0, 1), (0.0, -1)])
def test_a_warp_of_90_degrees_is_a_quarter_turn(draw, place, turns):
    draw("_warp", {2: place})
    batch = images(2, 3)
    actual = still(16, degrees=90.0)(batch, some_keys(2))
    assert_close(actual, torch.rot90(batch, turns, dims=(2, 3)), rtol=0, atol=1e-5)


def test_a_warp_shears_horizontally_by_its_slope(draw):
    draw("_warp", {3: 1.0})
    ramp = torch.linspace(-1, 1, 17)[None, None, None].expand(1, 1, 17, 17) / 4 + 0.5  # brightness tells the column
    actual = still(17, shear=0.5)(ramp, some_keys(1))[0, 0]
    step = (ramp[0, 0, 0, 1] - ramp[0, 0, 0, 0]).item()
    assert_close(actual[9:, 8] - actual[8:-1, 8], torch.full((8,), 0.5 * step), rtol=0, atol=1e-5)
    assert actual[8, 8].item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("place", "rows", "columns"), [(4, 0, 4), (5, 4, 0)])
def test_a_warp_moves_its_window_up_to_the_border(draw, place, rows, columns):
    draw("_warp", {place: 1.0 - 2.0**-24})
    batch = images(2)
    actual = still(8, scale=(0.5, 0.5))(batch, some_keys(2))
    assert_close(actual, batch[..., 4 + rows : 12 + rows, 4 + columns : 12 + columns], rtol=0, atol=1e-5)


def test_a_warp_moves_its_window_beyond_the_border_by_its_shift(draw):
    draw("_warp", {4: 1.0})
    batch = images(2)
    actual = still(16, shift=0.25)(batch, some_keys(2))  # a quarter of half of 16 pixels
    assert_close(actual, functional.pad(batch[..., 2:], (0, 2)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("first", "pad"), [(6, (0, 1)), (22, (0, 0, 0, 1))])
def test_an_elastic_warp_moves_an_axis_by_its_displacement(draw, first, pad):
    draw("_warp", dict.fromkeys(range(first, first + 16), 1.0))  # every grid point alike: one pixel
    batch = images(2)
    actual = still(16, elastic=2 / 16)(batch, some_keys(2))
    cut = batch[..., 1:] if first == 6 else batch[..., 1:, :]
    assert_close(actual, functional.pad(cut, pad), rtol=0, atol=1e-5)


def test_an_elastic_warp_bends_by_its_grid_points(draw):
    draw("_warp", {6: 1.0})  # x of the upper left point alone
    batch = images(1)
    actual = still(16, elastic=2 / 16)(batch, some_keys(1))
    assert actual[0, 0, 0, 0].item() == pytest.approx(batch[0, 0, 0, 1].item(), abs=1e-5)
    assert_close(actual[0, 0, -1], batch[0, 0, -1], rtol=0, atol=1e-5)


def test_a_warp_is_its_slow_twin():
    n, size, height, width = 4, 9, 10, 14
    batch, keys = images(n, 1, height, width), some_keys(n)
    warp = RandomWarp(size, scale=(0.6, 1.2), degrees=40.0, shear=0.5, shift=0.3)
    actual = warp(batch, keys)
    u = (2 * uniform(keys, 38) - 1).double()
    for i in range(n):
        zoom = [0.9 + 0.3 * u[i, axis].item() for axis in (0, 1)]
        angle, slope = math.radians(40.0) * u[i, 2].item(), 0.5 * u[i, 3].item()
        for row in range(size):
            for column in range(size):
                x, y = (2 * column + 1) / size - 1, (2 * row + 1) / size - 1
                x = x + slope * y  # shear, then rotate, then zoom, then move
                x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
                x, y = (
                    zoom[axis] * p + u[i, 4 + axis].item() * (abs(1 - zoom[axis]) + 0.3)
                    for axis, p in enumerate((x, y))
                )
                expected = bilinear(batch[i, 0], ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2)
                assert actual[i, 0, row, column].item() == pytest.approx(expected, abs=2e-5)


def test_a_warp_stays_within_0_and_1():
    out = RandomWarp(16, elastic=0.3, shift=0.2)((images(16) > 0.5).float(), some_keys(16))
    assert out.shape == (16, 1, 16, 16)
    assert out.min() >= 0
    assert out.max() <= 1


def test_a_warp_of_uint8_is_that_of_float():
    batch = (images(4) * 255).to(torch.uint8)
    warp = RandomWarp(12, elastic=0.1)
    assert_close(warp(batch, some_keys(4)), warp(batch / 255, some_keys(4)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "`size` must be at least 8 pixels, got 7."),
        ({"scale": (0.0, 1.0)}, "`scale` must be an increasing pair above 0, got (0.0, 1.0)."),
        ({"scale": (1.0, 0.5)}, "`scale` must be an increasing pair above 0, got (1.0, 0.5)."),
        ({"degrees": -1.0}, "`degrees` must be at least 0 and finite, got -1.0."),
        ({"shear": -0.1}, "`shear` must be at least 0 and finite, got -0.1."),
        ({"shift": -0.1}, "`shift` must be at least 0 and finite, got -0.1."),
        ({"elastic": -0.1}, "`elastic` must be at least 0 and finite, got -0.1."),
    ],
)
def test_a_warp_says_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomWarp(**{"size": 16, **arguments})


# Strokes


def square() -> Tensor:
    """A bright square of 4 x 4 pixels on black."""
    image = torch.zeros(1, 1, 10, 10)
    image[..., 3:7, 3:7] = 1
    return image


def test_a_stroke_without_change_is_the_image_but_for_its_floor():
    batch = images(4)
    actual = RandomStroke(thickness=0.0, gamma=0.0, contrast=0.0)(batch, some_keys(4))
    assert_close(actual, batch.clamp(min=1e-6), rtol=0, atol=0)


@pytest.mark.parametrize(("place", "side"), [(1.0, 6), (0.0, 2)])
def test_a_stroke_of_thickness_1_grows_or_shrinks_by_a_pixel(draw, place, side):
    draw("_stroke", {0: place})
    actual = RandomStroke(thickness=1.0, gamma=0.0, contrast=0.0)(square(), some_keys(1))
    edge = (10 - side) // 2
    expected = functional.pad(torch.ones(1, 1, side, side), (edge,) * 4)
    assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("place", "outside", "rim"), [(1.0, 0.25, 1.0), (0.0, 0.0, 0.75)])
def test_a_stroke_mixes_the_image_with_its_dilation_or_erosion(draw, place, outside, rim):
    draw("_stroke", {0: place})
    actual = RandomStroke(thickness=0.25, gamma=0.0, contrast=0.0)(square(), some_keys(1))
    assert actual[0, 0, 2, 4].item() == pytest.approx(outside, abs=2e-6)
    assert actual[0, 0, 3, 4].item() == pytest.approx(rim, abs=2e-6)


@pytest.mark.parametrize(("place", "exponent"), [(1.0, 2.0), (0.5, 1.0), (0.0, 0.5)])
def test_a_stroke_raises_brightness_to_its_exponent(draw, place, exponent):
    draw("_stroke", {1: place})
    batch = images(2)
    actual = RandomStroke(thickness=0.0, gamma=math.log(2), contrast=0.0)(batch, some_keys(2))
    assert_close(actual, batch**exponent, rtol=0, atol=1e-3 if exponent < 1 else 1e-5)


@pytest.mark.parametrize(("place", "factor"), [(1.0, 1.5), (0.0, 0.5)])
def test_a_stroke_multiplies_brightness_and_clips(draw, place, factor):
    draw("_stroke", {2: place})
    batch = images(2)
    actual = RandomStroke(thickness=0.0, gamma=0.0, contrast=0.5)(batch, some_keys(2))
    assert_close(actual, (factor * batch).clamp(0, 1), rtol=0, atol=1e-5)


def test_a_stroke_draws_for_each_image():
    batch = images(1).expand(8, 1, 16, 16)
    assert len(RandomStroke()(batch, some_keys(8)).unique(dim=0)) == 8


def test_a_stroke_stays_within_0_and_1():
    out = RandomStroke(thickness=1.0, gamma=2.0, contrast=0.9)((images(16) > 0.5).float(), some_keys(16))
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("black", [0.0, 1e-30])
def test_a_stroke_has_a_bounded_gradient_at_black(draw, black):
    draw("_stroke", {1: 0.0})  # the exponent 1/e, whose slope at 0 is infinite
    batch = torch.full((1, 1, 4, 4), black, requires_grad=True)
    RandomStroke(gamma=1.0)(batch, some_keys(1)).sum().backward()
    assert batch.grad.abs().max() <= 1e-6 ** (1 / math.e - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thickness": -0.1}, "`thickness` must be in [0, 1], got -0.1."),
        ({"thickness": 1.1}, "`thickness` must be in [0, 1], got 1.1."),
        ({"gamma": -0.1}, "`gamma` must be at least 0, got -0.1."),
        ({"contrast": -0.1}, "`contrast` must be in [0, 1), got -0.1."),
        ({"contrast": 1.0}, "`contrast` must be in [0, 1), got 1.0."),
    ],
)
def test_a_stroke_says_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomStroke(**arguments)
