"""The transform of the tests: the authors' centred square, by torchvision's pixels."""

import re

import pytest
import torch
from cl_augment import EvalTransform, sample_keys
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

# size of the view, size of the image, the authors' box as (top, left, height, width)
CASES = [
    (64, (64, 64), (4, 4, 56, 56)),
    (48, (64, 80), (4, 12, 56, 56)),
    (48, (61, 50), (9, 3, 44, 44)),  # 0.875 * 50 = 43.75; (61 - 44 + 1) // 2 = 9
    (40, (52, 52), (3, 3, 46, 46)),  # 45.5 rounds to the even 46
    (32, (40, 56), (0, 8, 40, 40)),
    (16, (41, 32), (5, 0, 32, 32)),
    (224, (2, 3), (0, 1, 2, 2)),
]


def images(n: int = 2, h: int = 40, w: int = 56, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def torchvisions(batch: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    view = tv.resized_crop(batch, *box, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return view.clamp(0, 1)


def largest_difference_of_eval(dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """From torchvision's pixels of the authors' box, over all cases, for images in [0, 1]."""
    differences = [
        (EvalTransform(size)(batch) - torchvisions(batch, box, size)).abs().max().item()
        for size, shape, box in CASES
        for batch in [images(2, *shape, dtype=dtype)]
    ]
    return {"eval": max(differences)}


@pytest.mark.parametrize(("size", "shape", "box"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)], ids=str)
def test_eval_transform_is_torchvisions_crop_of_the_authors_box(size, shape, box, dtype, tolerance):
    batch = images(2, *shape, dtype=dtype)
    assert_close(EvalTransform(size)(batch), torchvisions(batch, box, size), rtol=0, atol=tolerance)


def test_the_largest_difference_of_eval_is_rounding():
    assert 0 < largest_difference_of_eval()["eval"] < 2e-5


def test_eval_transform_is_torchvisions_resize_and_centre_crop_where_these_agree():
    batch = images(2, 32, 64)
    cut = tv.center_crop(batch, [28, 28])
    expected = tv.resize(cut, [14, 14], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert_close(EvalTransform(14, crop=0.875)(batch), expected.clamp(0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [32, 20])
def test_eval_transform_leaves_an_image_of_its_size_alone(side):
    assert_close(EvalTransform(side)(images(2, side, side)), images(2, side, side), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "crop"), [(8, 1.0), (32, 1.0), (33, 0.875), (224, 0.875)])
def test_eval_transform_keeps_the_whole_shorter_side_up_to_32_px_and_seven_eighths_above(size, crop):
    assert_close(EvalTransform(size)(images()), EvalTransform(size, crop=crop)(images()), rtol=0, atol=0)
    other = EvalTransform(size, crop=1.875 - crop)(images())
    assert (other - EvalTransform(size)(images())).abs().max() > 0.01


def test_eval_transform_clips_what_bicubic_interpolation_overshoots():
    views = EvalTransform(64)((images() > 0.5).float())
    assert views.min() == 0
    assert views.max() == 1


def test_eval_transform_of_uint8_is_that_of_float_up_to_rounding():
    batch = (images() * 255).to(torch.uint8)
    assert_close(EvalTransform(48)(batch), EvalTransform(48)(batch / 255), rtol=0, atol=1e-6)


def test_eval_transform_of_uint8_of_its_size_is_the_image_in_0_1():
    batch = (images(2, 32, 32) * 255).to(torch.uint8)
    assert_close(EvalTransform(32)(batch), batch / 255, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_eval_transform_keeps_the_floating_point_type(dtype):
    assert EvalTransform(16)(images(dtype=dtype)).dtype == dtype


def test_eval_transform_leaves_its_input_alone():
    batch = images()
    EvalTransform(48)(batch)
    assert_close(batch, images(), rtol=0, atol=0)


def test_eval_transform_takes_keys_and_does_not_use_them():
    keys = sample_keys(torch.arange(2), seed=0, epoch=0)
    assert_close(EvalTransform(48)(images(), keys), EvalTransform(48)(images()), rtol=0, atol=0)


def test_eval_transform_of_no_image_is_no_view():
    assert EvalTransform(48)(images(0)).shape == (0, 3, 48, 48)


def test_eval_transform_prints_its_arguments():
    assert repr(EvalTransform(48)) == "EvalTransform(48, crop=0.875)"


# Errors


def test_eval_transform_says_that_the_size_is_below_8():
    with pytest.raises(ValueError, match=r"^`size` must be at least 8 pixels, got 7\.$"):
        EvalTransform(7)


@pytest.mark.parametrize("crop", [0.0, -0.5, 1.5])
def test_eval_transform_says_that_the_crop_is_out_of_range(crop):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`crop` must be in (0, 1], got {crop}.')}$"):
        EvalTransform(16, crop=crop)
