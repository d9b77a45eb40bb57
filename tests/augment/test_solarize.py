"""Random solarisation: torchvision's."""

import math
import re

import pytest
import torch
from cl_augment import Solarize, sample_keys
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

ALL = {"batch_prob": torch.ones(8, dtype=torch.bool)}
THRESHOLDS = [0.0, 0.1, 0.5, 0.9, 1.0]


def images(c: int = 3) -> Tensor:
    return torch.rand(8, c, 12, 10, generator=torch.Generator().manual_seed(0))


def some_keys(n: int) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def difference_at(threshold: float) -> float:
    return (Solarize(threshold=threshold).replay(images(), ALL) - tv.solarize(images(), threshold)).abs().max().item()


def largest_difference() -> float:
    """To torchvision's `solarize`, in float32, over some thresholds."""
    return max(map(difference_at, THRESHOLDS))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_solarize_is_torchvisions_bit_by_bit(threshold):
    assert difference_at(threshold) == 0


def test_the_largest_difference_to_torchvision_is_none():
    assert largest_difference() == 0


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_solarize_takes_any_number_of_channels(channels):
    batch = images(channels)
    expected = torch.tensor([1 - x if x >= 0.5 else x for x in batch.flatten().tolist()]).reshape(batch.shape)
    assert_close(Solarize().replay(batch, ALL), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_value_at_the_threshold_is_inverted(dtype, masked, monkeypatch):
    values = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=dtype).expand(8, 1, 2, 4)
    expected = torch.tensor([0.0, 0.75, 0.25, 0.0], dtype=dtype).expand(8, 1, 2, 4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: masked)
    actual = Solarize(threshold=0.25).replay(values, ALL)
    monkeypatch.undo()
    assert_close(actual, expected, rtol=0, atol=0)


def test_one_half_stays_one_half():
    batch = torch.full((8, 3, 2, 2), 0.5)
    assert_close(Solarize().replay(batch, ALL), batch, rtol=0, atol=0)


def test_one_image_in_five_is_solarised():
    chosen = Solarize().draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))["batch_prob"]
    assert chosen.double().mean().item() == pytest.approx(0.2, abs=3.5 * math.sqrt(0.2 * 0.8 / 60_000))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 128, math.nan])
def test_solarize_says_that_its_threshold_is_out_of_range(threshold):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`threshold` must be in [0, 1], got {threshold}.')}$"):
        Solarize(threshold=threshold)


def test_solarize_prints_its_arguments():
    assert repr(Solarize()) == "Solarize(p=0.2, threshold=0.5)"
