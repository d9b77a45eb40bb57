"""Gaussian blur: torchvision's, with a width of its own for each image."""

import math
import re

import pytest
import torch
from cl_augment import GaussianBlur, sample_keys
from kornia import filters
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

SIGMAS = torch.tensor([0.1, 0.35, 0.7, 1.0, 1.4, 2.0])
SIZES = [(20, 20), (32, 32), (40, 40), (64, 48), (48, 64), (96, 96), (60, 4)]


def images(n: int = 6, c: int = 3, h: int = 40, w: int = 40, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=dtype)


def some_keys(n: int) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def drawn(sigmas: Tensor, chosen: list[bool] | None = None) -> dict[str, Tensor]:
    """What a stage would have drawn."""
    return {"sigma": sigmas, "batch_prob": torch.tensor(chosen or [True] * len(sigmas))}


def torchvisions(batch: Tensor, sigmas: Tensor) -> Tensor:
    """One image after the other, by a kernel of a tenth of the height."""
    taps = 2 * (batch.shape[2] // 20) + 1
    return torch.stack([tv.gaussian_blur(x, [taps, taps], [s.item()]) for x, s in zip(batch, sigmas, strict=True)])


def difference_for(height: int, width: int) -> float:
    batch = images(h=height, w=width)
    return (GaussianBlur().replay(batch, drawn(SIGMAS)) - torchvisions(batch, SIGMAS)).abs().max().item()


def largest_difference() -> float:
    """To torchvision's `gaussian_blur`, in float32, over some sizes and widths."""
    return max(difference_for(*size) for size in SIZES)


def blurred_point(size: int, sigma: float) -> Tensor:
    """The kernel: one white pixel in the centre, blurred."""
    point = torch.zeros(1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    return GaussianBlur().replay(point, drawn(torch.tensor([sigma])))[0, 0]


# Formula


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blur_is_torchvisions_image_by_image(height, width):
    assert difference_for(height, width) <= 2e-6


def test_the_largest_difference_to_torchvision_is_of_rounding():
    assert largest_difference() <= 2e-6


def test_blur_is_torchvisions_in_float64():
    batch, sigmas = images(h=64, w=48, dtype=torch.float64), SIGMAS.double()
    assert_close(GaussianBlur().replay(batch, drawn(sigmas)), torchvisions(batch, sigmas), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blur_is_kornias(height, width):
    batch = images(h=height, w=width)
    taps = 2 * (height // 20) + 1
    expected = filters.gaussian_blur2d(batch, (taps, taps), SIGMAS[:, None].expand(6, 2), border_type="reflect")
    assert_close(GaussianBlur().replay(batch, drawn(SIGMAS)), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_blur_takes_any_number_of_channels(channels):
    batch = images(c=channels)
    assert_close(GaussianBlur().replay(batch, drawn(SIGMAS)), torchvisions(batch, SIGMAS), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "taps"), [(20, 3), (32, 3), (39, 3), (40, 5), (64, 7), (96, 9), (128, 13), (160, 17), (224, 23)]
)
def test_blur_has_the_authors_number_of_taps(size, taps):
    assert (blurred_point(size, 1e3)[size // 2] > 0).sum() == taps


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
    batch = images(h=19, w=19)
    assert_close(GaussianBlur().replay(batch, drawn(SIGMAS)), batch, rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_blur_leaves_a_plain_image_plain(value):
    batch = torch.full((6, 3, 40, 40), value)
    actual = GaussianBlur().replay(batch, drawn(SIGMAS))
    assert_close(actual, batch, rtol=0, atol=1e-6)  # zero padding would darken the borders


def test_blur_stays_within_0_and_1():
    batch = torch.cat([images().round(), torch.ones(6, 3, 40, 40)])  # the rounded sum of a kernel may pass 1
    out = GaussianBlur().replay(batch, drawn(SIGMAS.repeat(2)))
    assert out.min() >= 0
    assert out.max() <= 1


def test_blur_changes_the_chosen_images_only():
    batch, chosen = images(), [True, False, False, True, True, False]
    actual = GaussianBlur().replay(batch, drawn(SIGMAS + 0.4, chosen))
    assert ((actual - batch).abs().amax(dim=(1, 2, 3)) > 0.01).tolist() == chosen
    assert_close(actual[[1, 2, 5]], batch[[1, 2, 5]], rtol=0, atol=0)


# Laws


@pytest.fixture(scope="module")
def draws() -> dict[str, Tensor]:
    return GaussianBlur().draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))


def distance_to_uniform(values: Tensor, low: float, high: float) -> float:
    """sqrt(n) times the largest difference of the distribution functions: Kolmogorov and Smirnov's statistic."""
    n = len(values)
    expected = (values.double().sort().values - low) / (high - low)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((steps[1:] - expected).max().item(), (expected - steps[:-1]).max().item())


def test_sigma_is_uniform_in_the_papers_range(draws):
    assert distance_to_uniform(draws["sigma"], 0.1, 2.0) < 1.95  # passed by chance at 1 in 1000


def test_sigma_is_uniform_in_another_range():
    sigmas = GaussianBlur(sigma=(1.0, 1.5)).draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))["sigma"]
    assert distance_to_uniform(sigmas, 1.0, 1.5) < 1.95


def test_sigma_of_a_range_of_one_number_is_that_number():
    sigmas = GaussianBlur(sigma=(1.5, 1.5)).draw(some_keys(8), torch.Size([8, 3, 32, 32]))["sigma"]
    assert sigmas.tolist() == [1.5] * 8


def test_half_of_the_images_are_blurred(draws):
    assert draws["batch_prob"].dtype == torch.bool
    assert draws["batch_prob"].double().mean().item() == pytest.approx(0.5, abs=3.5 * 0.5 / math.sqrt(60_000))


def test_whether_to_blur_is_uncorrelated_with_how_much(draws):
    table = torch.stack([draws["sigma"], draws["batch_prob"]]).double()
    assert torch.corrcoef(table)[0, 1].abs() < 4 / math.sqrt(60_000)


# Errors


@pytest.mark.parametrize(
    "sigma", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.nan)], ids=lambda sigma: f"{sigma}"
)
def test_blur_says_that_sigma_is_no_range(sigma):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`sigma` must be an increasing pair above 0, got {sigma}.')}$"):
        GaussianBlur(sigma=sigma)


@pytest.mark.parametrize(("height", "width"), [(60, 3), (60, 2), (224, 11)])
def test_blur_refuses_images_narrower_than_half_its_kernel(height, width):
    message = f"`images` {height} px high must be over {height // 20} px wide to be blurred."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GaussianBlur(1.0)(torch.zeros(1, 1, height, width), some_keys(1))


def test_blur_prints_its_arguments():
    assert repr(GaussianBlur()) == "GaussianBlur(p=0.5, sigma=(0.1, 2.0))"
