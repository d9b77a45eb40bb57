"""Gaussian blur: torchvision's, with a width of its own for each image."""

import math
import re

import pytest
import torch
from cl_augment import GaussianBlur, sample_keys, uniform
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv


def images(n: int, c: int = 3, h: int = 40, w: int = 40, *, seed: int = 0) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def some_keys(n: int, *, seed: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=seed, epoch=0)


def blurred_point(size: int, sigma: float) -> Tensor:
    """The kernel: one white pixel in the centre, blurred."""
    point = torch.zeros(1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    return GaussianBlur(1.0, sigma=(sigma, sigma))(point, some_keys(1))[0, 0]


@pytest.mark.parametrize(("height", "width"), [(20, 20), (40, 40), (64, 48), (64, 80)])
def test_blur_is_torchvisions_image_by_image(height, width):
    batch, keys = images(6, 3, height, width), some_keys(6)
    sigmas = 0.1 + 1.9 * uniform(keys, 2)[:, 0]
    taps = 2 * (height // 20) + 1
    actual = GaussianBlur(1.0)(batch, keys)
    for i in range(6):
        assert_close(actual[i], tv.gaussian_blur(batch[i], [taps, taps], [sigmas[i].item()]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "taps"), [(32, 3), (64, 7), (96, 9), (224, 23), (20, 3), (39, 3), (40, 5)])
def test_blur_has_the_authors_number_of_taps(size, taps):
    reached = (blurred_point(size, 1e3)[size // 2] > 0).sum()
    assert reached == taps


@pytest.mark.parametrize(
    ("sigma", "kernel"),
    [
        (0.5, [0.106507, 0.786986, 0.106507]),
        (1.0, [0.274069, 0.451863, 0.274069]),
        (2.0, [0.319168, 0.361664, 0.319168]),
    ],
)
def test_blur_has_the_authors_kernel(sigma, kernel):
    kernel = torch.tensor(kernel)
    assert_close(blurred_point(32, sigma)[15:18, 15:18], kernel[:, None] * kernel, rtol=0, atol=2e-6)


def test_blur_leaves_images_below_20_px_alone():
    batch = images(4, 3, 19, 19)
    assert_close(GaussianBlur(1.0)(batch, some_keys(4)), batch, rtol=0, atol=0)


def test_blur_leaves_a_plain_image_plain():
    batch = torch.full((4, 3, 40, 40), 0.7)
    assert_close(GaussianBlur(1.0)(batch, some_keys(4)), batch)  # zero padding would darken the borders


def test_blur_stays_within_0_and_1():
    out = GaussianBlur(1.0)((images(8) > 0.5).float(), some_keys(8))
    assert out.min() >= 0
    assert out.max() <= 1


def test_blur_draws_within_the_papers_range_and_fills_it(monkeypatch):
    n, seen = 4000, []

    def record(batch: Tensor, *, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return batch

    monkeypatch.setattr("cl_augment._blur.blur", record)
    GaussianBlur()(torch.zeros(n, 1, 20, 2), some_keys(n))
    assert seen[0].shape == (n,)
    assert seen[0].min().item() == pytest.approx(0.1, abs=0.005)
    assert seen[0].max().item() == pytest.approx(2.0, abs=0.005)
    assert seen[0].mean().item() == pytest.approx(1.05, abs=4 * 1.9 / math.sqrt(12 * n))


def test_blur_of_probability_0_changes_nothing():
    batch = images(16)
    assert_close(GaussianBlur(0.0)(batch, some_keys(16)), batch, rtol=0, atol=0)


def test_blur_changes_half_of_the_images_wholly_and_leaves_the_others_alone():
    n = 1000
    batch = images(1, 1, 20, 20).expand(n, 1, 20, 20)
    stage = GaussianBlur(sigma=(1.0, 1.0))
    distance = (stage(batch, some_keys(n)) - batch).abs().amax(dim=(1, 2, 3))
    assert (distance > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))
    assert len(distance.round(decimals=5).unique()) == 2


def test_blur_decides_whether_to_blur_apart_from_how_much(monkeypatch):
    n = 1000

    def show_sigma(batch: Tensor, *, sigma: Tensor) -> Tensor:
        return (sigma[:, None, None, None] / 2).expand_as(batch)

    monkeypatch.setattr("cl_augment._blur.blur", show_sigma)
    out = GaussianBlur()(torch.zeros(n, 1, 20, 2), some_keys(n))[:, 0, 0, 0]
    sigma = 2 * out[out > 0]
    assert sigma.min() < 0.15
    assert sigma.max() > 1.95
    assert sigma.mean().item() == pytest.approx(1.05, abs=4 * 1.9 / math.sqrt(12 * len(sigma)))


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_blur_says_that_p_is_no_probability(p):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`p` is a probability in [0, 1], got {p}.')}$"):
        GaussianBlur(p)


@pytest.mark.parametrize("sigma", [(0.0, 1.0), (2.0, 1.0)])
def test_blur_says_that_sigma_is_no_range(sigma):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`sigma` must be an increasing pair above 0, got {sigma}.')}$"):
        GaussianBlur(sigma=sigma)


def test_blur_refuses_images_narrower_than_half_its_kernel():
    with pytest.raises(ValueError, match="`images` 60 px high must be over 3 px wide to be blurred"):
        GaussianBlur(p=1.0)(torch.zeros(1, 1, 60, 3), some_keys(1))
