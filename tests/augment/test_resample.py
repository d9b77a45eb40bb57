"""The pixels of crop, resize and flip: torchvision's for a given box, whatever the layout or type of the images."""

import pytest
import torch
from cl_augment._resample import Boxes, axis_taps, crop_resize
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
HEIGHT, WIDTH = 40, 56
# top, left, height, width: all of it; one pixel, inside and in two corners; at every border; narrow; flat; of the
# output's size; larger than the output in one direction and in both
BOXES = [
    (0, 0, 40, 56),
    (20, 30, 1, 1),
    (0, 0, 1, 1),
    (39, 55, 1, 1),
    (0, 0, 9, 7),
    (31, 50, 9, 6),
    (0, 50, 9, 6),
    (31, 0, 9, 7),
    (0, 54, 40, 2),
    (39, 0, 1, 56),
    (5, 6, 16, 16),
    (3, 11, 35, 12),
    (2, 3, 37, 51),
]
FLIPS = torch.arange(len(BOXES)) % 2 == 0

INTERPOLATIONS = pytest.mark.parametrize("interpolation", MODES)
ANTIALIAS = pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "no antialias"])


def images(n: int = len(BOXES), c: int = 3, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, c, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def crops(batch: Tensor, boxes=BOXES, *, flip: Tensor | None = FLIPS, size=16, interpolation, antialias=True) -> Tensor:
    table = Boxes(*torch.tensor(boxes).unbind(1))
    return crop_resize(batch, table, flip=flip, size=size, interpolation=interpolation, antialias=antialias)


def torchvisions(batch: Tensor, *, size: int, interpolation: str, antialias: bool) -> Tensor:
    """Of each image its box by torchvision, one after the other, flipped where FLIPS say so."""
    expected = []
    for image, box, flip in zip(batch, BOXES, FLIPS.tolist(), strict=True):
        view = tv.resized_crop(image, *box, [size, size], interpolation=MODES[interpolation], antialias=antialias)
        expected.append(tv.hflip(view) if flip else view)
    return torch.stack(expected)


def largest_difference_of_crop(dtype: torch.dtype = torch.float32, *, sizes=(1, 8, 16, 24, 47)) -> dict[str, float]:
    """From torchvision's pixels, over all boxes and sizes, for images in [0, 1]."""
    found = {}
    for interpolation in MODES:
        for antialias in (True, False):
            name = f"crop, {interpolation}" + ("" if antialias else ", no antialias")
            batch, rules = images(dtype=dtype), {"interpolation": interpolation, "antialias": antialias}
            found[name] = max(
                (crops(batch, size=size, **rules) - torchvisions(batch, size=size, **rules)).abs().max().item()
                for size in sizes
            )
    return found


def assert_bit_equal(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


# torchvision's pixels


@INTERPOLATIONS
@ANTIALIAS
@pytest.mark.parametrize("size", [1, 16, 47])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)], ids=str)
def test_crop_resize_gives_torchvisions_pixels(interpolation, antialias, size, dtype, tolerance):
    batch, rules = images(dtype=dtype), {"size": size, "interpolation": interpolation, "antialias": antialias}
    actual = crops(batch, **rules)
    assert actual.dtype == dtype
    assert_close(actual, torchvisions(batch, **rules), rtol=0, atol=tolerance)


def test_the_largest_difference_from_torchvision_is_rounding():
    found = largest_difference_of_crop()
    assert len(found) == 4
    assert min(found.values()) > 0
    assert max(found.values()) < 2e-5


@INTERPOLATIONS
@ANTIALIAS
def test_crop_resize_of_a_box_of_the_outputs_size_only_cuts(interpolation, antialias):
    actual = crops(images(1), [(5, 6, 16, 16)], flip=None, interpolation=interpolation, antialias=antialias)
    assert_bit_equal(actual, images(1)[:, :, 5:21, 6:22])


@INTERPOLATIONS
@ANTIALIAS
def test_crop_resize_of_one_pixel_is_that_pixel(interpolation, antialias):
    actual = crops(images(1), [(20, 30, 1, 1)], flip=None, interpolation=interpolation, antialias=antialias)
    assert_close(actual, images(1)[:, :, 20:21, 30:31].expand(1, 3, 16, 16), rtol=0, atol=2e-7)


@INTERPOLATIONS
@ANTIALIAS
@pytest.mark.parametrize("size", [8, 16, 47])
def test_crop_resize_sees_nothing_outside_of_its_box(interpolation, antialias, size):
    boxes = [(3, 2, 11, 17), (20, 30, 1, 1)]
    alone = images(2)
    for image, (top, left, height, width) in zip(alone, boxes, strict=True):
        inside = image[:, top : top + height, left : left + width].clone()
        image.fill_(torch.nan)[:, top : top + height, left : left + width] = inside
    rules = {"flip": FLIPS[:2], "size": size, "interpolation": interpolation, "antialias": antialias}
    assert_bit_equal(crops(alone, boxes, **rules), crops(images(2), boxes, **rules))


@INTERPOLATIONS
@ANTIALIAS
def test_crop_resize_of_a_constant_is_that_constant(interpolation, antialias):
    batch = torch.full((len(BOXES), 1, HEIGHT, WIDTH), 0.7)
    actual = crops(batch, size=24, interpolation=interpolation, antialias=antialias)
    assert_close(actual, torch.full_like(actual, 0.7), rtol=0, atol=2e-6)


@INTERPOLATIONS
@ANTIALIAS
def test_a_flip_mirrors_the_view_of_its_image_alone(interpolation, antialias):
    rules = {"interpolation": interpolation, "antialias": antialias}
    plain, flipped = crops(images(), flip=None, **rules), crops(images(), flip=FLIPS, **rules)
    assert_bit_equal(flipped[~FLIPS], plain[~FLIPS])
    assert_close(flipped[FLIPS], plain[FLIPS].flip(3), rtol=0, atol=2e-6)


@INTERPOLATIONS
@ANTIALIAS
def test_no_flip_is_a_flip_of_no_image(interpolation, antialias):
    rules = {"interpolation": interpolation, "antialias": antialias}
    assert_bit_equal(crops(images(), flip=None, **rules), crops(images(), flip=torch.zeros_like(FLIPS), **rules))


# The same for any neighbours, layout and type


@INTERPOLATIONS
@ANTIALIAS
def test_crop_resize_does_not_depend_on_the_rest_of_the_batch(interpolation, antialias):
    rules = {"interpolation": interpolation, "antialias": antialias}
    together = crops(images(), **rules)
    for part in (slice(0, 1), slice(4, 6), slice(10, 13)):
        assert_bit_equal(crops(images()[part], BOXES[part], flip=FLIPS[part], **rules), together[part])


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other image": lambda x: torch.stack([x, 1 - x], dim=1).flatten(0, 1)[::2],
    "every other column": lambda x: torch.stack([x, 1 - x], dim=4).flatten(3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "a window": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
}


@INTERPOLATIONS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_crop_resize_does_not_depend_on_the_layout_in_memory(interpolation, layout, dtype):
    batch = images() if dtype == torch.float32 else (images() * 127).to(dtype)
    laid_out = LAYOUTS[layout](batch)
    assert not laid_out.is_contiguous()
    assert_bit_equal(crops(laid_out, interpolation=interpolation), crops(batch, interpolation=interpolation))


@INTERPOLATIONS
def test_crop_resize_of_an_expanded_image_is_that_of_its_copies(interpolation):
    same = images(1).expand(len(BOXES), 3, HEIGHT, WIDTH)
    expected = crops(same.contiguous(), interpolation=interpolation)
    assert_bit_equal(crops(same, interpolation=interpolation), expected)


@INTERPOLATIONS
@ANTIALIAS
def test_crop_resize_of_uint8_is_that_of_float_up_to_rounding(interpolation, antialias):
    batch, rules = (images() * 255).to(torch.uint8), {"interpolation": interpolation, "antialias": antialias}
    actual = crops(batch, **rules)
    assert actual.dtype == torch.float32
    assert_close(actual, crops(batch / 255, **rules), rtol=0, atol=1e-6)


@INTERPOLATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_crop_resize_adds_half_types_up_in_float32(interpolation, dtype):
    batch = images(dtype=dtype)
    expected = crops(batch.float(), interpolation=interpolation).to(dtype)
    assert_bit_equal(crops(batch, interpolation=interpolation), expected)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_crop_resize_treats_channels_alike(channels):
    batch = images(c=channels)
    alone = [crops(batch[:, c : c + 1], interpolation="bicubic") for c in range(channels)]
    assert_bit_equal(crops(batch, interpolation="bicubic"), torch.cat(alone, dim=1))


@INTERPOLATIONS
@ANTIALIAS
def test_weights_do_not_depend_on_how_wide_the_other_images_are(interpolation, antialias):
    """Bit for bit: what a wide image adds to the tables of the others is weights of 0."""
    length = torch.arange(1, 45)
    start = 44 - length
    rules = {"mirror": None, "size": 8, "interpolation": interpolation, "antialias": antialias, "dtype": torch.float32}
    _, weights = axis_taps(start, length, extent=44, **rules)
    for extent in (50, 200, 1200):
        _, more = axis_taps(start, length, extent=extent, **rules)
        assert_bit_equal(more[:, :, : weights.shape[2]], weights)
        assert (more[:, :, weights.shape[2] :] == 0).all()


def test_crop_resize_of_no_image_is_no_view():
    nothing = Boxes(*torch.empty(4, 0, dtype=torch.int64))
    views = crop_resize(images(0), nothing, flip=None, size=16, interpolation="bicubic", antialias=True)
    assert views.shape == (0, 3, 16, 16)


def test_crop_resize_is_the_same_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    there = crops(images().cuda(), interpolation="bicubic")  # the boxes are still on the CPU
    assert_close(there.cpu(), crops(images(), interpolation="bicubic"), rtol=0, atol=2e-6)
