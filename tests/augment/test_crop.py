"""The crops: torchvision's pixels for given boxes, torchvision's law of the boxes, the authors' crop of the tests."""

import math
import re

import pytest
import torch
from cl_augment import EvalTransform, LinearEvalAugment, RandomResizedCropFlip, fold_in, sample_keys, uniform
from cl_augment._crop import random_boxes
from cl_augment._resample import crop_resize
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
# top, left, height, width in an image of 40 x 56: all of it, tiny, at every border, narrow, flat, smaller and larger
# than the output
BOXES = [
    (0, 0, 40, 56),
    (20, 30, 1, 1),
    (0, 0, 9, 7),
    (31, 50, 9, 6),
    (0, 54, 40, 2),
    (39, 0, 1, 56),
    (5, 6, 16, 16),
    (3, 11, 35, 27),
]
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def images(n: int, c: int = 3, h: int = 40, w: int = 56, *, seed: int = 0) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def some_keys(n: int, *, seed: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=seed, epoch=0)


def our_boxes(n: int, height: int, width: int) -> Tensor:
    """(n, 4): top, left, height, width."""
    return torch.stack(
        random_boxes(uniform(some_keys(n), 22), height=height, width=width, scale=SCALE, ratio=RATIO), dim=1
    )


def torchvision_boxes(n: int, height: int, width: int) -> Tensor:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(n)], dtype=torch.float32)


def boxes_by_loops(u: Tensor, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The law of random_boxes, image by image and try by try, from the same random numbers."""
    found = []
    for row in u.double().tolist():
        box = None
        for area_u, aspect_u in zip(row[:10], row[10:20], strict=True):
            area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area_u)
            aspect = math.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * aspect_u)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                box = (math.floor(row[20] * (height - h + 1)), math.floor(row[21] * (width - w + 1)), h, w)
                break
        found.append(box)
    return found


def distance(x: Tensor, y: Tensor) -> float:
    """Kolmogorov and Smirnov's, between two samples of equal size."""
    both = torch.cat([x, y]).sort().values
    below = [torch.searchsorted(z.sort().values, both, right=True) / len(z) for z in (x, y)]
    return (below[0] - below[1]).abs().max().item()


# Pixels


@pytest.mark.parametrize("kernel", MODES)
@pytest.mark.parametrize("size", [1, 16, 24])
def test_crop_resize_gives_torchvisions_pixels(kernel, size):
    batch = images(len(BOXES))
    flip = torch.arange(len(BOXES)) % 2 == 0
    top, left, height, width = torch.tensor(BOXES, dtype=torch.float32).unbind(1)
    actual = crop_resize(
        batch, top=top, left=left, height=height, width=width, flip=flip, size=size, interpolation=kernel
    )
    for i, box in enumerate(BOXES):
        expected = tv.resized_crop(batch[i], *box, [size, size], interpolation=MODES[kernel], antialias=True)
        expected = tv.hflip(expected) if flip[i] else expected
        assert_close(actual[i], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", MODES)
def test_crop_resize_sees_nothing_outside_of_its_box(kernel):
    inside, outside = torch.zeros(1, 1, 12, 12), torch.ones(1, 1, 12, 12)
    outside[..., 3:8, 2:9] = 0
    box = {"top": 3.0, "left": 2.0, "height": 5.0, "width": 7.0}
    box = {name: torch.tensor([value]) for name, value in box.items()}
    for size in (3, 16):
        actual = crop_resize(outside, **box, flip=None, size=size, interpolation=kernel)
        assert_close(actual, crop_resize(inside, **box, flip=None, size=size, interpolation=kernel), rtol=0, atol=0)


def test_random_crop_cuts_and_mirrors_what_it_draws():
    batch, keys = images(16), some_keys(16)
    u = uniform(keys, 23)
    boxes = our_boxes(16, 40, 56).int().tolist()
    actual = RandomResizedCropFlip(16)(batch, keys)
    flips = (u[:, 22] < 0.5).tolist()
    assert 0 < sum(flips) < 16
    for i in range(16):
        expected = tv.resized_crop(batch[i], *boxes[i], [16, 16], interpolation=MODES["bicubic"], antialias=True)
        expected = tv.hflip(expected) if flips[i] else expected
        assert_close(actual[i], expected.clamp(0, 1), rtol=0, atol=2e-6)


def test_random_crop_clips_what_bicubic_interpolation_overshoots():
    batch = (images(16) > 0.5).float()
    views = RandomResizedCropFlip(32)(batch, some_keys(16))
    assert views.min() == 0
    assert views.max() == 1


def test_random_crop_flips_half_of_the_images():
    n = 2000
    ramp = torch.linspace(0, 1, 8).expand(n, 1, 8, 8)
    views = RandomResizedCropFlip(4)(ramp, some_keys(n))
    flipped = (views[:, 0, 0, 0] > views[:, 0, 0, 3]).float().mean().item()
    assert flipped == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize(("flip", "rising"), [(0.0, True), (1.0, False)])
def test_random_crop_flips_none_or_all_when_asked(flip, rising):
    ramp = torch.linspace(0, 1, 8).expand(50, 1, 8, 8)
    views = RandomResizedCropFlip(4, flip=flip, interpolation="bilinear")(ramp, some_keys(50))
    assert ((views[..., -1] > views[..., 0]) == rising).all()


def test_random_crop_of_uint8_is_that_of_float():
    batch = (images(8) * 255).to(torch.uint8)
    crop = RandomResizedCropFlip(16)
    assert_close(crop(batch, some_keys(8)), crop(batch / 255, some_keys(8)), rtol=0, atol=0)


def test_linear_eval_augment_is_the_random_crop_and_flip():
    batch, keys = images(8), some_keys(8)
    assert_close(LinearEvalAugment(16)(batch, keys), RandomResizedCropFlip(16)(batch, keys), rtol=0, atol=0)


def test_linear_eval_augment_without_keys_follows_its_generator():
    batch, augment = images(8), LinearEvalAugment(16)
    first, second, other = (augment(batch, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_close(first, second, rtol=0, atol=0)
    assert (first - other).abs().max() > 0.1


# The law of the boxes


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 33), (20, 60)])
def test_random_boxes_are_their_slow_twin(height, width):
    u = uniform(some_keys(500), 22)
    actual = our_boxes(500, height, width).int().tolist()
    compared = 0
    for box, expected in zip(actual, boxes_by_loops(u, height, width), strict=True):
        if expected is not None:
            # float32 may round a side that is half a pixel away to the other side; none of these 500 is
            assert tuple(box) == expected
            compared += 1
    assert compared > 400


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64)])
@pytest.mark.parametrize("quantity", ["area", "aspect", "top", "left"])
def test_random_boxes_follow_torchvisions_law(quantity, height, width):
    n = 3000

    def measure(boxes: Tensor) -> Tensor:
        top, left, h, w = boxes.unbind(1)
        return {"area": h * w, "aspect": w / h, "top": top, "left": left}[quantity]

    found = distance(measure(our_boxes(n, height, width)), measure(torchvision_boxes(n, height, width)))
    assert found < 1.95 * math.sqrt(2 / n)  # one in a thousand, and the seeds are fixed


def test_random_boxes_of_32_px_cover_the_published_mean_share():
    boxes = our_boxes(3000, 32, 32)
    assert (boxes[:, 2] * boxes[:, 3] / 1024).mean().item() == pytest.approx(0.489, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 33), (7, 5), (10, 300), (1, 1)])
def test_random_boxes_lie_within_the_image(height, width):
    top, left, h, w = our_boxes(3000, height, width).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_random_boxes_reach_every_border():
    top, left, h, w = our_boxes(3000, 32, 32).unbind(1)
    small = (h < 20) & (w < 20)
    assert top[small].min() == 0
    assert left[small].min() == 0
    assert (top + h)[small].max() == 32
    assert (left + w)[small].max() == 32


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 300, (0, 143, 10, 13)), (300, 10, (143, 0, 13, 10)), (5, 100, (0, 46, 5, 7))]
)
def test_random_boxes_of_an_extreme_image_are_its_centre(height, width, box):
    assert our_boxes(20, height, width).unique(dim=0).tolist() == [list(box)]
    assert torchvision_boxes(20, height, width).unique(dim=0).tolist() == [list(box)]


# The transform of the tests


@pytest.mark.parametrize("height", [32, 20])
def test_eval_transform_leaves_an_image_of_its_size_alone(height):
    batch = images(2, 3, height, height)
    assert_close(EvalTransform(height)(batch), batch, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "height", "width", "box"),
    [
        (64, 64, 64, (4, 4, 56, 56)),
        (48, 64, 80, (4, 12, 56, 56)),
        (48, 61, 50, (9, 3, 44, 44)),  # 0.875 * 50 = 43.75; (61 - 44 + 1) // 2 = 9
        (40, 52, 52, (3, 3, 46, 46)),  # 45.5 rounds to the even 46
        (32, 40, 56, (0, 8, 40, 40)),
        (16, 41, 32, (5, 0, 32, 32)),
    ],
)
def test_eval_transform_is_torchvisions_crop_of_the_authors_box(size, height, width, box):
    batch = images(2, 3, height, width)
    expected = tv.resized_crop(batch, *box, [size, size], interpolation=MODES["bicubic"], antialias=True).clamp(0, 1)
    assert_close(EvalTransform(size)(batch), expected, rtol=0, atol=1e-5)


def test_eval_transform_is_torchvisions_resize_and_centre_crop_where_these_agree():
    batch = images(2, 3, 32, 64)
    expected = tv.resize(tv.center_crop(batch, [28, 28]), [14, 14], interpolation=MODES["bicubic"], antialias=True)
    assert_close(EvalTransform(14, crop=0.875)(batch), expected.clamp(0, 1), rtol=0, atol=2e-6)


def test_eval_transform_of_uint8_is_that_of_float():
    batch = (images(2) * 255).to(torch.uint8)
    assert_close(EvalTransform(48)(batch), EvalTransform(48)(batch / 255), rtol=0, atol=0)


def test_eval_transform_of_uint8_of_its_size_is_the_image_in_0_1():
    batch = (images(2, 3, 32, 32) * 255).to(torch.uint8)
    assert_close(EvalTransform(32)(batch), batch / 255, rtol=0, atol=0)


def test_eval_transform_takes_keys_and_does_not_use_them():
    batch = images(2)
    assert_close(EvalTransform(48)(batch, some_keys(2)), EvalTransform(48)(batch), rtol=0, atol=0)


# Errors


@pytest.mark.parametrize("make", [RandomResizedCropFlip, EvalTransform, LinearEvalAugment])
def test_crops_say_that_the_size_is_below_1(make):
    with pytest.raises(ValueError, match=r"^`size` must be at least 1 pixel, got 0\.$"):
        make(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.0, 1.0)}, "`scale` must be an increasing pair within (0, 1], got (0.0, 1.0)."),
        ({"scale": (0.5, 0.1)}, "`scale` must be an increasing pair within (0, 1], got (0.5, 0.1)."),
        ({"scale": (0.5, 1.1)}, "`scale` must be an increasing pair within (0, 1], got (0.5, 1.1)."),
        ({"ratio": (0.0, 1.0)}, "`ratio` must be an increasing pair above 0, got (0.0, 1.0)."),
        ({"ratio": (2.0, 1.0)}, "`ratio` must be an increasing pair above 0, got (2.0, 1.0)."),
        ({"flip": 1.5}, "`flip` is a probability in [0, 1], got 1.5."),
        ({"flip": -0.5}, "`flip` is a probability in [0, 1], got -0.5."),
    ],
)
def test_random_crop_says_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomResizedCropFlip(16, **arguments)


@pytest.mark.parametrize("crop", [0.0, -0.5, 1.5])
def test_eval_transform_says_that_the_crop_is_out_of_range(crop):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`crop` must be in (0, 1], got {crop}.')}$"):
        EvalTransform(16, crop=crop)


def test_crops_say_that_images_have_four_dimensions():
    message = re.escape("`images` must have shape (n, c, h, w), got (3, 40, 56).")
    with pytest.raises(ValueError, match=f"^{message}$"):
        EvalTransform(16)(images(1)[0])


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_crops_say_which_types_images_may_have(dtype):
    message = re.escape(f"`images` must be uint8 in 0..255 or float in [0, 1], got {dtype}.")
    with pytest.raises(TypeError, match=f"^{message}$"):
        RandomResizedCropFlip(16)(images(2).to(dtype), fold_in(some_keys(2), 0))


def test_crop_refuses_an_unknown_interpolation():
    with pytest.raises(ValueError, match="`interpolation` must be 'bilinear' or 'bicubic', got 'nearest'"):
        RandomResizedCropFlip(4, interpolation="nearest")
