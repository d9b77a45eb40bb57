"""What cannot be augmented is refused, in words that say what was wrong."""

import math
import re

import pytest
import torch
from cl_augment import (
    BYOLAugment,
    ColorJitter,
    EvalTransform,
    LinearEvalAugment,
    RandomGrayscale,
    RandomResizedCropFlip,
    SimCLRAugment,
    TwoViewAugment,
    TwoViews,
    sample_keys,
)
from torch import Tensor


def images(n: int = 4, c: int = 3, h: int = 20, w: int = 24) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 4) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def with_value(value: float) -> Tensor:
    """Images with one value of one of them replaced."""
    batch = images()
    batch[2, 1, 3, 4] = value
    return batch


def says(kind: type[Exception], message: str):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


# all that take a batch: called with images and keys
EVERY_CALL = pytest.mark.parametrize(
    "augment",
    [
        SimCLRAugment(16),
        BYOLAugment(16),
        LinearEvalAugment(16),
        EvalTransform(16),
        SimCLRAugment(16).cut,
        RandomResizedCropFlip(16),
        RandomGrayscale(),
    ],
    ids=["SimCLR", "BYOL", "linear", "eval", "cut", "crop", "grey"],
)
EVERY_KEYED_CALL = pytest.mark.parametrize(
    "augment",
    [
        SimCLRAugment(16),
        LinearEvalAugment(16),
        SimCLRAugment(16).draw,
        SimCLRAugment(16).cut,
        lambda batch, keys: SimCLRAugment(16).finish((batch, batch), keys),
        ColorJitter(),
    ],
    ids=["SimCLR", "linear", "draw", "cut", "finish", "jitter"],
)


# Images


@EVERY_CALL
@pytest.mark.parametrize("shape", [(3, 20, 24), (20, 24), (4, 3, 1, 20, 24)], ids=str)
def test_images_of_another_rank_are_refused(augment, shape):
    with says(ValueError, f"`images` must have shape (n, c, h, w), got {shape}."):
        augment(torch.zeros(shape), some_keys(shape[0]))


@EVERY_CALL
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64], ids=str)
def test_images_of_another_dtype_are_refused(augment, dtype):
    with says(TypeError, f"`images` must be uint8 in 0..255 or float in [0, 1], got {dtype}."):
        augment(torch.zeros(4, 3, 20, 24, dtype=dtype), some_keys())


@EVERY_CALL
@pytest.mark.parametrize("shape", [(4, 3, 1, 24), (4, 3, 20, 1), (4, 3, 0, 24), (4, 0, 20, 24)], ids=str)
def test_images_without_channels_or_below_2_px_are_refused(augment, shape):
    with says(ValueError, f"`images` must have a channel and at least 2 x 2 pixels, got shape {shape}."):
        augment(torch.zeros(shape), some_keys())


@EVERY_CALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_floats_outside_0_1_are_refused(augment, dtype):
    batch = torch.zeros(4, 3, 20, 24, dtype=dtype)
    batch[2, 1, 3, 4], batch[3, 0, 0, 0] = -0.25, 1.5
    with says(ValueError, "`images` must lie in [0, 1], got values from -0.25 to 1.5."):
        augment(batch, some_keys())


@EVERY_CALL
def test_floats_that_look_like_bytes_are_refused_with_a_hint(augment):
    hint = "Bytes are scaled by themselves: pass uint8."
    with says(ValueError, f"`images` must lie in [0, 1], got values from 0 to 255. {hint}"):
        augment(torch.linspace(0, 255, 4 * 3 * 20 * 24).view(4, 3, 20, 24), some_keys())


@EVERY_CALL
def test_images_with_nan_are_refused(augment):
    with says(ValueError, "`images` must lie in [0, 1], got NaN among them."):
        augment(with_value(math.nan), some_keys())


@EVERY_CALL
@pytest.mark.parametrize(
    ("value", "message"),
    [(math.inf, "from 0 to inf. Bytes are scaled by themselves: pass uint8."), (-math.inf, "from -inf to 1.")],
)
def test_infinite_images_are_refused(augment, value, message):
    batch = with_value(value)
    batch[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with says(ValueError, f"`images` must lie in [0, 1], got values {message}"):
        augment(batch, some_keys())


@EVERY_CALL
def test_0_and_1_are_not_refused(augment):
    augment(torch.ones(4, 3, 20, 24), some_keys())
    augment(torch.zeros(4, 3, 20, 24), some_keys())


@pytest.mark.parametrize("augment", [SimCLRAugment(16), LinearEvalAugment(16)], ids=["SimCLR", "linear"])
@pytest.mark.parametrize(("wrong", "name"), [(3, "int"), ({}, "dict"), (None, "NoneType"), (iter([]), "list_iterator")])
def test_images_of_another_type_are_refused(augment, wrong, name):
    with says(TypeError, f"`images` must be a tensor or a list of tensors, got {name}."):
        augment(wrong, some_keys())


@pytest.mark.parametrize("augment", [RandomResizedCropFlip(16), RandomGrayscale()], ids=["crop", "grey"])
def test_lists_are_refused_where_a_batch_is_asked_for(augment):
    with says(TypeError, "`images` must be a tensor, got list."):
        augment(list(images()), some_keys())


# Lists


def test_an_empty_list_is_refused():
    with says(ValueError, "`images` must hold at least one image, got an empty list."):
        SimCLRAugment(16)([], some_keys(0))


@pytest.mark.parametrize(
    ("second", "got"), [("a", "str"), (torch.zeros(1, 3, 9, 9), (1, 3, 9, 9)), (torch.zeros(9, 9), (9, 9))], ids=str
)
def test_lists_of_anything_but_images_are_refused(second, got):
    with says(ValueError, f"`images` of a list must be tensors (c, h, w), got {got} at 1."):
        SimCLRAugment(16)([torch.zeros(3, 9, 9), second], some_keys(2))


@pytest.mark.parametrize(
    ("third", "got"),
    [
        (torch.zeros(1, 9, 9), "1, torch.float32, cpu"),
        (torch.zeros(3, 9, 9, dtype=torch.uint8), "3, torch.uint8, cpu"),
        (torch.zeros(3, 9, 9, device="meta"), "3, torch.float32, meta"),
    ],
    ids=["channels", "dtype", "device"],
)
def test_lists_that_mix_channels_dtypes_or_devices_are_refused(third, got):
    message = f"must agree in channels, dtype and device: 3, torch.float32, cpu at 0, but {got} at 2."
    with says(ValueError, f"`images` of a list {message}"):
        SimCLRAugment(16)([torch.zeros(3, 9, 9), torch.zeros(3, 12, 9), third], some_keys(3))


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (torch.zeros(3, 1, 9), ValueError, "must have a channel and at least 2 x 2 pixels, got shape (1, 3, 1, 9)."),
        (torch.full((3, 9, 9), 2.0), ValueError, "must lie in [0, 1], got values from 2 to 2."),
        (torch.full((3, 9, 9), math.nan), ValueError, "must lie in [0, 1], got NaN among them."),
    ],
    ids=["pixels", "range", "nan"],
)
def test_each_image_of_a_list_is_checked(image, kind, message):
    with says(kind, f"`images` {message}"):
        SimCLRAugment(16)([torch.zeros(3, 9, 9), image], some_keys(2))


def test_lists_of_another_dtype_are_refused():
    with says(TypeError, "`images` must be uint8 in 0..255 or float in [0, 1], got torch.int64."):
        SimCLRAugment(16)([torch.zeros(3, 9, 9, dtype=torch.int64)], some_keys(1))


# Sizes


def test_sizes_beside_a_list_are_refused():
    with says(ValueError, "`sizes` belongs to a padded batch; the images of a list know their own."):
        SimCLRAugment(16)(list(images()), some_keys(), sizes=torch.full((4, 2), 9))
    with says(ValueError, "`sizes` belongs to a padded batch; the images of a list know their own."):
        SimCLRAugment(16).draw(list(images()), some_keys(), sizes=torch.full((4, 2), 9))


@pytest.mark.parametrize(
    ("sizes", "got"),
    [
        (torch.full((4, 2), 9.0), "torch.float32 (4, 2)"),
        (torch.full((4, 2), 9, dtype=torch.int32), "torch.int32 (4, 2)"),
        (torch.full((3, 2), 9), "torch.int64 (3, 2)"),
        (torch.full((4,), 9), "torch.int64 (4,)"),
    ],
    ids=str,
)
def test_sizes_of_another_dtype_or_shape_are_refused(sizes, got):
    with says(ValueError, f"`sizes` must be int64 (4, 2), got {got}."):
        SimCLRAugment(16)(images(), some_keys(), sizes=sizes)


@pytest.mark.parametrize(
    ("first", "got"),
    [
        ([21, 9], "from [9, 9] to [21, 9]"),
        ([9, 25], "from [9, 9] to [9, 25]"),
        ([1, 9], "from [1, 9] to [9, 9]"),
        ([9, 0], "from [9, 0] to [9, 9]"),
    ],
    ids=str,
)
def test_sizes_beyond_the_batch_or_below_2_px_are_refused(first, got):
    sizes = torch.full((4, 2), 9)
    sizes[0] = torch.tensor(first)
    with says(ValueError, f"`sizes` must lie in 2..20 and 2..24, got {got}."):
        SimCLRAugment(16)(images(), some_keys(), sizes=sizes)


# Keys


@EVERY_KEYED_CALL
@pytest.mark.parametrize("shape", [(3,), (5,), (0,), (4, 1), ()], ids=str)
def test_keys_of_another_length_are_refused(augment, shape):
    with says(ValueError, f"`keys` must have shape (4,), one for each image, got {shape}."):
        augment(images(), torch.zeros(shape, dtype=torch.int64))


@EVERY_KEYED_CALL
@pytest.mark.parametrize(
    ("keys", "got"),
    [(torch.zeros(4), "torch.float32"), (torch.zeros(4, dtype=torch.int32), "torch.int32"), ([0, 1, 2, 3], "list")],
    ids=["float", "int32", "list"],
)
def test_keys_of_another_dtype_are_refused(augment, keys, got):
    with says(TypeError, f"`keys` must be int64, as `sample_keys` makes them, got {got}."):
        augment(images(), keys)


# Channels


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("augment", [SimCLRAugment(16), BYOLAugment(16)], ids=["SimCLR", "BYOL"])
def test_a_hue_cannot_be_turned_without_three_channels(augment, channels):
    message = f"`images` of {channels} channels have no hue to turn: pass hue=0."
    with says(ValueError, message):
        augment(images(4, channels), some_keys())


# Arguments


@pytest.mark.parametrize(
    "augment", [SimCLRAugment, BYOLAugment, LinearEvalAugment, EvalTransform], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"mean": [0.5]}, ValueError, "`mean` and `std` go together, got [0.5] and None."),
        ({"std": [0.5]}, ValueError, "`mean` and `std` go together, got None and [0.5]."),
        (
            {"mean": [0.5], "std": [0.5, 0.5, 0.5]},
            ValueError,
            "`mean` and `std` must be equally long, got [0.5] and [0.5, 0.5, 0.5].",
        ),
        ({"mean": [0.5], "std": [0.0]}, ValueError, "`std` must be positive, got [0.0]."),
        ({"mean": [0.5], "std": [-1.0]}, ValueError, "`std` must be positive, got [-1.0]."),
        (
            {"dtype": torch.uint8},
            TypeError,
            "`dtype` of the views must be a floating point type, got torch.uint8.",
        ),
        ({"mean": 0.5, "std": 0.5}, TypeError, "`mean` must be a sequence of numbers, one for each channel, got 0.5."),
        ({"mean": [], "std": []}, TypeError, "`mean` must be a sequence of numbers, one for each channel, got []."),
        ({"mean": [math.nan], "std": [1.0]}, ValueError, "`mean` must be finite, got [nan]."),
        ({"mean": [0.5], "std": [math.nan]}, ValueError, "`std` must be positive, got [nan]."),
        (
            {"memory_format": torch.preserve_format},
            ValueError,
            "`memory_format` must be contiguous_format or channels_last, got torch.preserve_format.",
        ),
        ({"size": 7}, ValueError, "`size` must be at least 8 pixels, got 7."),
        ({"size": 32.5}, TypeError, "`size` must be a whole number of pixels, got 32.5."),
        ({"size": (32, 32)}, TypeError, "`size` must be a whole number of pixels, got (32, 32)."),
    ],
)
def test_presets_say_what_is_out_of_range(augment, arguments, kind, message):
    with says(kind, message):
        augment(**{"size": 16, **arguments})


@pytest.mark.parametrize(
    "augment", [SimCLRAugment, BYOLAugment, LinearEvalAugment, EvalTransform], ids=lambda f: f.__name__
)
def test_a_mean_must_have_a_value_for_each_channel(augment):
    with says(ValueError, "`mean` must have a value for each of 3 channels, got (0.5, 0.5)."):
        augment(16, mean=(0.5, 0.5), std=(0.5, 0.5))(images(), some_keys())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "`strength` must be at least 0 and finite, got -1.0."),
        ({"strength": math.nan}, "`strength` must be at least 0 and finite, got nan."),
        ({"hue": -0.1}, "`hue` must be at least 0 and finite, got -0.1."),
        ({"strength": 3.0}, f"`strength` times `hue` must be at most 0.5, half a circle, got 3.0 * 0.2 = {3.0 * 0.2}."),
        ({"grey": 1.5}, "`p` is a probability in [0, 1], got 1.5."),
        ({"interpolation": "nearest"}, "`interpolation` must be 'bilinear' or 'bicubic', got 'nearest'."),
    ],
)
def test_simclr_says_what_is_out_of_range(arguments, message):
    with says(ValueError, message):
        SimCLRAugment(24, **arguments)


def test_two_views_need_a_stage():
    with says(ValueError, "`stages` must hold at least one stage, got none."):
        TwoViews()


@pytest.mark.parametrize(("wrong", "name"), [(torch.sigmoid, "builtin_function_or_method"), (3, "int"), ("a", "str")])
def test_stages_must_be_modules(wrong, name):
    message = f"a stage must be a module called as `stage(images, keys)`, got {name}."
    with says(TypeError, message):
        TwoViews(RandomResizedCropFlip(16), wrong)
    with says(TypeError, message):
        SimCLRAugment(16, extra=[wrong])


def test_two_views_must_agree_in_shape():
    augment = TwoViewAugment([RandomResizedCropFlip(16)], [RandomResizedCropFlip(24)])
    with says(ValueError, "the views must agree in shape, got (3, 16, 16) and (3, 24, 24)."):
        augment(images(), some_keys())
