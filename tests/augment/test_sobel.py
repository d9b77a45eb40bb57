"""Edges: Kornia's Sobel filter."""

import itertools
import math

import pytest
import torch
from cl_augment import Sobel, sample_keys
from kornia import filters
from torch import Tensor
from torch.testing import assert_close

SHAPES = [(1, 12, 10), (3, 12, 10), (4, 2, 2), (3, 32, 32), (3, 48, 64)]
KERNEL = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(8, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def some_keys(n: int) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def all_of(batch: Tensor) -> dict[str, Tensor]:
    return {"batch_prob": torch.ones(len(batch), dtype=torch.bool)}


def difference_for(shape: tuple[int, int, int]) -> float:
    batch = images(*shape)
    return (Sobel().replay(batch, all_of(batch)) - filters.sobel(batch)).abs().max().item()


def largest_difference() -> float:
    """To Kornia's `sobel`, in float32, over some shapes."""
    return max(map(difference_for, SHAPES))


def by_loops(image: Tensor) -> Tensor:
    """Both filters at each pixel of an image (h, w), in float64; pixels outside repeat the border."""
    height, width = image.shape
    result = torch.empty(height, width, dtype=torch.float64)
    for y, x in itertools.product(range(height), range(width)):
        along_x = along_y = 0.0
        for i, j in itertools.product(range(3), range(3)):
            pixel = image[min(max(y + i - 1, 0), height - 1), min(max(x + j - 1, 0), width - 1)].item()
            along_x += KERNEL[i][j] * pixel / 8
            along_y += KERNEL[j][i] * pixel / 8
        result[y, x] = math.sqrt(along_x**2 + along_y**2 + 1e-6)
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_sobel_is_kornias(shape):
    assert difference_for(shape) <= 2e-6


def test_the_largest_difference_to_kornia_is_of_rounding():
    assert largest_difference() <= 2e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_sobel_is_kornias_in_float64(shape):
    batch = images(*shape, dtype=torch.float64)
    assert_close(Sobel().replay(batch, all_of(batch)), filters.sobel(batch), rtol=0, atol=1e-12)


def test_sobel_is_the_sum_over_the_neighbours_of_each_pixel():
    batch = images(1, 6, 5, dtype=torch.float64)
    actual = Sobel().replay(batch, all_of(batch))
    for i in range(8):
        assert_close(actual[i, 0], by_loops(batch[i, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_plain_image_has_edges_of_one_thousandth(value):
    batch = torch.full((2, 3, 5, 4), value)
    assert_close(Sobel().replay(batch, all_of(batch)), torch.full_like(batch, 1e-3), rtol=1e-6, atol=0)


def test_a_ramp_has_its_slope_for_edges():
    batch = (torch.arange(8) / 10).expand(1, 1, 6, 8)
    inside = Sobel().replay(batch, all_of(batch))[..., 1:-1]
    assert_close(inside, torch.full_like(inside, math.hypot(0.1, 1e-3)), rtol=1e-5, atol=0)


def test_no_neighbourhood_has_a_stronger_edge_than_the_docstring_says():
    # The squared length is convex in the nine pixels, so it is largest at some corner of the cube.
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).reshape(512, 1, 3, 3)
    strongest = Sobel().replay(corners, all_of(corners))[:, 0, 1, 1].max().item()
    assert strongest == pytest.approx(math.sqrt(0.3125), abs=1e-5)


def test_sobel_of_probability_a_half_filters_half_of_the_images():
    chosen = Sobel(0.5).draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))["batch_prob"]
    assert chosen.double().mean().item() == pytest.approx(0.5, abs=3.5 * 0.5 / math.sqrt(60_000))


def test_sobel_filters_every_image_unless_told_otherwise():
    assert Sobel().draw(some_keys(1000), torch.Size([1000, 3, 32, 32]))["batch_prob"].all()


def test_sobel_prints_its_probability():
    assert repr(Sobel()) == "Sobel(p=1.0)"
