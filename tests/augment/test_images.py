"""What images every transform takes, told of the crops: types, shapes, and values in [0, 1]."""

import math
import re
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from cl_augment import EvalTransform, RandomResizedCropFlip
from cl_augment import _images as checks

TRANSFORMS = pytest.mark.parametrize("transform", [RandomResizedCropFlip(16), EvalTransform(16)], ids=["crop", "eval"])


def expect(error: type[Exception], message: str, call, *arguments, **named) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(*arguments, **named)


def test_crops_say_that_images_are_a_tensor():
    expect(TypeError, "`images` must be a tensor, got list.", RandomResizedCropFlip(16), [torch.rand(3, 9, 9)])


@TRANSFORMS
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
def test_crops_say_which_types_images_may_have(transform, dtype):
    message = f"`images` must be uint8 in 0..255 or float in [0, 1], got {dtype}."
    expect(TypeError, message, transform, torch.zeros(2, 3, 9, 9).to(dtype))


@TRANSFORMS
@pytest.mark.parametrize("shape", [(3, 40, 56), (40, 56), (1, 1, 3, 40, 56)])
def test_crops_say_that_images_have_four_dimensions(transform, shape):
    expect(ValueError, f"`images` must have shape (n, c, h, w), got {shape}.", transform, torch.zeros(shape))


@TRANSFORMS
@pytest.mark.parametrize("shape", [(2, 3, 1, 9), (2, 3, 9, 1), (2, 3, 0, 9), (2, 0, 9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_crops_say_that_images_are_too_small(transform, shape, dtype):
    message = f"`images` must have a channel and at least 2 x 2 pixels, got shape {shape}."
    expect(ValueError, message, transform, torch.zeros(shape, dtype=dtype))


@TRANSFORMS
@pytest.mark.parametrize(
    ("pixel", "got"),
    [
        (math.nan, "NaN among them."),
        (-0.25, "values from -0.25 to 0.5."),
        (1.25, "values from 0.5 to 1.25."),
        (math.inf, "values from 0.5 to inf. Bytes are scaled by themselves: pass uint8."),
        (255.0, "values from 0.5 to 255. Bytes are scaled by themselves: pass uint8."),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_crops_say_that_images_leave_0_1(transform, pixel, got, dtype):
    batch = torch.full((2, 3, 9, 9), 0.5, dtype=dtype)
    batch[1, 2, 3, 4] = pixel
    expect(ValueError, f"`images` must lie in [0, 1], got {got}", transform, batch)


@TRANSFORMS
def test_crops_take_the_ends_of_the_range(transform):
    batch = torch.tensor([0.0, 1.0]).repeat(2, 3, 9, 5)
    assert transform(batch).isfinite().all()


def test_a_range_that_a_gpu_finds_broken_is_told_by_a_later_call(monkeypatch):
    late, later = (
        checks._Copied(torch.tensor([0.0, 3.0]), SimpleNamespace(query=lambda t=t: t)) for t in (True, False)
    )
    monkeypatch.setattr(checks, "_on_the_way", deque([late, later]))
    message = (
        "In an earlier call on a GPU: `images` must lie in [0, 1], got values from 0 to 3. "
        "Bytes are scaled by themselves: pass uint8."
    )
    expect(ValueError, message, RandomResizedCropFlip(16), torch.zeros(2, 3, 9, 9))
    RandomResizedCropFlip(16)(torch.zeros(2, 3, 9, 9))  # told once, and what has not arrived is not waited for
