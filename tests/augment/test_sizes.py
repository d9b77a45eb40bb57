"""Images of different sizes, as a list or a padded batch: each has the views that it has alone."""

import re

import pytest
import torch
from cl_augment import LinearEvalAugment, SimCLRAugment, sample_keys
from torch import Tensor
from torch.testing import assert_close

# the extreme ones have no box by the law, and the first is the smallest there may be
SIZES = [(2, 2), (40, 56), (12, 90), (90, 9), (57, 33)]
KEYS = sample_keys(torch.arange(len(SIZES)), seed=0, epoch=0)
AUGMENTS = pytest.mark.parametrize(
    "augment",
    [LinearEvalAugment(16), SimCLRAugment(24, blur=True)],
    ids=["one view", "two views"],
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)


def unequal(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    bytes_ = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=source) for size in SIZES]
    return [image if dtype == torch.uint8 else image.to(dtype) / 255 for image in bytes_]


def padded(images: list[Tensor], *, height: int = 90, width: int = 90) -> Tensor:
    """Each at the upper left, and noise where there is no image."""
    source = torch.Generator().manual_seed(1)
    batch = torch.randint(0, 256, (len(images), 3, height, width), dtype=torch.uint8, generator=source)
    batch = batch if images[0].dtype == torch.uint8 else batch.to(images[0].dtype) / 255
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def one_by_one(augment, images: list[Tensor]) -> Tensor:
    """The views of each image alone, as `stacked` returns those of a batch."""
    views = [augment.stacked(image[None], KEYS[i : i + 1]) for i, image in enumerate(images)]
    return torch.stack(views, dim=1).flatten(0, 1)


def assert_bit_equal(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


@AUGMENTS
@DTYPES
def test_the_images_of_a_list_have_the_views_they_have_alone(augment, dtype):
    images = unequal(dtype)
    assert_bit_equal(augment.stacked(images, KEYS), one_by_one(augment, images))


@AUGMENTS
@DTYPES
def test_the_images_of_a_padded_batch_have_the_views_they_have_alone(augment, dtype):
    images = unequal(dtype)
    actual = augment.stacked(padded(images, height=101, width=128), KEYS, sizes=torch.tensor(SIZES))
    assert_bit_equal(actual, one_by_one(augment, images))


@AUGMENTS
def test_sizes_of_the_whole_batch_are_no_sizes(augment):
    batch = padded(unequal())
    sizes = torch.tensor([90, 90]).expand(len(SIZES), 2)
    assert_bit_equal(augment.stacked(batch, KEYS, sizes=sizes), augment.stacked(batch, KEYS))


@AUGMENTS
def test_a_list_of_equal_images_is_their_batch(augment):
    batch = padded(unequal())
    assert_bit_equal(augment.stacked(list(batch), KEYS), augment.stacked(batch, KEYS))


def test_the_call_hands_its_sizes_on():
    batch, sizes, whole = padded(unequal()), torch.tensor(SIZES), SimCLRAugment(24)
    assert_bit_equal(torch.cat(whole(batch, KEYS, sizes=sizes)), whole.stacked(batch, KEYS, sizes=sizes))
    crop = LinearEvalAugment(24)
    assert_bit_equal(crop(batch, KEYS, sizes=sizes), crop.stacked(batch, KEYS, sizes=sizes))


@AUGMENTS
def test_what_is_drawn_for_a_list_replays_its_call(augment):
    images = unequal()
    replayed = augment.replay(images, augment.draw(images, KEYS))
    assert_bit_equal(torch.cat(replayed) if isinstance(replayed, tuple) else replayed, augment.stacked(images, KEYS))


@AUGMENTS
def test_what_is_drawn_for_a_list_is_drawn_for_its_padded_batch(augment):
    images = unequal()
    of_list = augment.draw(images, KEYS)
    of_batch = augment.draw(padded(images), KEYS, sizes=torch.tensor(SIZES))
    assert_close(of_list, of_batch, rtol=0, atol=0)
    assert_bit_equal(augment.stacked(images, KEYS), augment.stacked(padded(images), KEYS, sizes=torch.tensor(SIZES)))


# Errors


def expect(error: type[Exception], message: str, images, *, sizes: Tensor | None = None) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        LinearEvalAugment(16)(images, sample_keys(torch.arange(2), seed=0, epoch=0), sizes=sizes)


PAIR = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sizes", "got"),
    [
        (torch.tensor([[10, 12], [9.0, 12]]), "torch.float32 (2, 2)"),
        (torch.tensor([[10, 12]]), "torch.int64 (1, 2)"),
        (torch.tensor([10, 12]), "torch.int64 (2,)"),
    ],
)
def test_a_padded_batch_says_what_sizes_are(sizes, got):
    expect(ValueError, f"`sizes` must be int64 (2, 2), got {got}.", PAIR, sizes=sizes)


@pytest.mark.parametrize("wrong", [[11, 12], [10, 13], [1, 12], [10, 0], [-3, 5]])
def test_a_padded_batch_says_that_a_size_does_not_fit(wrong):
    rows = [[8, 7], wrong]
    least, most = ([pick(row[axis] for row in rows) for axis in (0, 1)] for pick in (min, max))
    message = f"`sizes` must lie in 2..10 and 2..12, got from {least} to {most}."
    expect(ValueError, message, PAIR, sizes=torch.tensor(rows))


def test_a_list_says_that_it_needs_no_sizes():
    message = "`sizes` belongs to a padded batch; the images of a list know their own."
    expect(ValueError, message, list(PAIR), sizes=torch.tensor([[10, 12], [10, 12]]))


@pytest.mark.parametrize(("images", "got"), [(None, "NoneType"), ({1}, "set")])
def test_views_say_that_images_are_a_tensor_or_a_list(images, got):
    expect_of_check(TypeError, f"`images` must be a tensor or a list of tensors, got {got}.", images)


def test_a_list_says_that_it_is_empty():
    expect_of_check(ValueError, "`images` must hold at least one image, got an empty list.", [])


def expect_of_check(error: type[Exception], message: str, images) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        LinearEvalAugment(16)(images)


@pytest.mark.parametrize(("wrong", "got"), [(PAIR[0, 0], "(10, 12)"), (PAIR[:1], "(1, 3, 10, 12)"), (7, "int")])
def test_a_list_says_which_of_its_images_is_none(wrong, got):
    expect(ValueError, f"`images` of a list must be tensors (c, h, w), got {got} at 1.", [PAIR[0], wrong])


@pytest.mark.parametrize("wrong", [PAIR[1, :1], (PAIR[1] * 255).to(torch.uint8), PAIR[1].double()], ids=range(3))
def test_a_list_says_which_of_its_images_differs(wrong):
    message = (
        "`images` of a list must agree in channels, dtype and device: 3, torch.float32, cpu at 0, "
        f"but {len(wrong)}, {wrong.dtype}, cpu at 1."
    )
    expect(ValueError, message, [PAIR[0], wrong])


def test_a_list_says_that_an_image_is_too_small():
    message = "`images` must have a channel and at least 2 x 2 pixels, got shape (1, 3, 1, 12)."
    expect(ValueError, message, [PAIR[0], PAIR[1, :, :1]])


def test_a_list_says_that_an_image_leaves_0_1():
    expect(ValueError, "`images` must lie in [0, 1], got values from -1 to -1.", [PAIR[0], -torch.ones(3, 9, 9)])
