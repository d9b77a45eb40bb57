"""Random grey images: torchvision's luma, the mean of the channels where they are not three."""

import math

import pytest
import torch
from cl_augment import RandomGrayscale, sample_keys
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

ALL = {"batch_prob": torch.ones(8, dtype=torch.bool)}


def images(c: int = 3, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(8, c, 12, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)


def some_keys(n: int) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def largest_difference() -> float:
    """To torchvision's `rgb_to_grayscale`, in float32."""
    expected = tv.rgb_to_grayscale(images(), num_output_channels=3)
    return (RandomGrayscale().replay(images(), ALL) - expected).abs().max().item()


def test_random_grayscale_is_torchvisions():
    assert largest_difference() <= 2e-6


def test_random_grayscale_is_torchvisions_in_float64():
    batch = images(dtype=torch.float64)
    expected = tv.rgb_to_grayscale(batch, num_output_channels=3)
    assert_close(RandomGrayscale().replay(batch, ALL), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channel", "weight"), [(0, 0.2989), (1, 0.587), (2, 0.114)], ids=["red", "green", "blue"])
def test_random_grayscale_weighs_the_channels_as_torchvision_does(channel, weight):
    batch = torch.zeros(8, 3, 2, 2)
    batch[:, channel] = 1
    assert_close(RandomGrayscale().replay(batch, ALL), torch.full((8, 3, 2, 2), weight), rtol=0, atol=1e-7)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_random_grayscale_is_the_mean_of_the_channels_where_they_are_not_three(channels):
    batch = images(channels, dtype=torch.float64)
    expected = sum(batch[:, k : k + 1] for k in range(channels)) / channels
    actual = RandomGrayscale().replay(batch, ALL)
    assert_close(actual, expected.expand_as(batch), rtol=0, atol=1e-12)


def test_random_grayscale_leaves_images_of_one_channel_alone():
    assert_close(RandomGrayscale().replay(images(1), ALL), images(1), rtol=0, atol=0)


def test_random_grayscale_stays_within_0_and_1():
    for value in (0.0, 1.0):
        out = RandomGrayscale(p=1.0)(torch.full((8, 3, 4, 4), value), some_keys(8))
        assert out.min() >= 0
        assert out.max() <= 1


def test_one_image_in_five_becomes_grey():
    chosen = RandomGrayscale().draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))["batch_prob"]
    assert chosen.double().mean().item() == pytest.approx(0.2, abs=3.5 * math.sqrt(0.2 * 0.8 / 60_000))


def test_random_grayscale_prints_its_probability():
    assert repr(RandomGrayscale()) == "RandomGrayscale(p=0.2)"
