"""Two views: the same for an image wherever it is, and different from one another."""

import re

import pytest
import torch
from cl_augment import (
    ColorJitter,
    GaussianBlur,
    RandomGrayscale,
    RandomResizedCropFlip,
    RandomStroke,
    RandomWarp,
    SimCLRAugment,
    TwoViewAugment,
    TwoViews,
    fold_in,
    sample_keys,
)
from torch import Tensor, nn
from torch.testing import assert_close


def images(n: int = 8, c: int = 3, h: int = 40, w: int = 44) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 8, *, epoch: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=epoch)


def strokes() -> TwoViews:
    return TwoViews(RandomWarp(24, elastic=0.1), RandomStroke())


AUGMENTS = pytest.mark.parametrize(
    "augment",
    [SimCLRAugment(24), SimCLRAugment(40, blur=True), strokes()],
    ids=["small", "with blur", "strokes"],
)


def assert_bit_equal(actual, expected) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


# What comes out


@AUGMENTS
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_float_squares_in_0_1(augment, channels):
    size = augment.view_a[0].size
    for view in augment(images(8, channels), some_keys()):
        assert view.shape == (8, channels, size, size)
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1


@AUGMENTS
def test_views_of_uint8_are_those_of_float(augment):
    assert_bit_equal(augment(images(), some_keys()), augment(images() / 255, some_keys()))


@AUGMENTS
def test_the_two_views_of_an_image_differ(augment):
    view_a, view_b = augment(images(), some_keys())
    assert ((view_a - view_b).abs().mean(dim=(1, 2, 3)) > 0.01).all()


@AUGMENTS
def test_an_image_has_other_views_in_another_epoch(augment):
    before, after = augment(images(), some_keys()), augment(images(), some_keys(epoch=1))
    for one, other in zip(before, after, strict=True):
        assert ((one - other).abs().mean(dim=(1, 2, 3)) > 0.01).all()


@AUGMENTS
def test_equal_images_have_different_views(augment):
    same = images(1).expand(8, 3, 40, 44)
    assert len(augment(same, some_keys())[0].unique(dim=0)) == 8


@AUGMENTS
def test_augmenting_leaves_the_images_alone(augment):
    batch = images() / 255
    augment(batch, some_keys())
    assert_bit_equal(batch, images() / 255)


# The same wherever it is


@AUGMENTS
def test_views_do_not_depend_on_the_order_of_the_batch(augment):
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    views = augment(images(), some_keys())
    assert_bit_equal(augment(images()[order], some_keys()[order]), tuple(view[order] for view in views))


@AUGMENTS
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5]], ids=str)
def test_views_do_not_depend_on_the_size_of_the_batch(augment, sizes):
    parts = [augment(*part) for part in zip(images().split(sizes), some_keys().split(sizes), strict=True)]
    actual = tuple(torch.cat(view) for view in zip(*parts, strict=True))
    assert_bit_equal(actual, augment(images(), some_keys()))


@AUGMENTS
def test_views_with_keys_do_not_depend_on_torchs_generator(augment):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = augment(images(), some_keys())
        torch.manual_seed(2)
        assert_bit_equal(augment(images(), some_keys()), before)


@AUGMENTS
def test_cut_and_finish_are_the_two_parts_of_the_call(augment):
    cuts = augment.cut(images(), some_keys())
    assert_bit_equal(augment.finish(cuts, some_keys()), augment(images(), some_keys()))


def test_images_of_unequal_sizes_are_cut_one_by_one_and_finished_together():
    augment, keys = SimCLRAugment(24), some_keys(2)
    pair = [images(1, 3, 40, 44), images(1, 3, 30, 64)]
    cuts = [augment.cut(image, keys[i : i + 1]) for i, image in enumerate(pair)]
    actual = augment.finish(tuple(torch.cat(cut) for cut in zip(*cuts, strict=True)), keys)
    expected = [augment(image, keys[i : i + 1]) for i, image in enumerate(pair)]
    assert_bit_equal(actual, tuple(torch.cat(view) for view in zip(*expected, strict=True)))


# Without keys


@AUGMENTS
def test_views_without_keys_follow_their_generator(augment):
    first, again, other = (augment(images(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_bit_equal(first, again)
    assert (first[0] - other[0]).abs().max() > 0.1


@AUGMENTS
def test_views_without_keys_and_generator_follow_torchs(augment):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = augment(images()), augment(images())
        torch.manual_seed(1)
        assert_bit_equal(augment(images()), first)
    assert (first[0] - second[0]).abs().max() > 0.1


# Stages


def test_simclr_is_crop_jitter_grey_and_blur_with_a_key_for_each_view_and_stage():
    stages = [RandomResizedCropFlip(40), ColorJitter(), RandomGrayscale(), GaussianBlur()]
    expected = []
    for view in (0, 1):
        out = images() / 255
        for place, stage in enumerate(stages):
            out = stage(out, fold_in(fold_in(some_keys(), view), place))
        expected.append(out)
    assert_bit_equal(SimCLRAugment(40)(images(), some_keys()), tuple(expected))


@pytest.mark.parametrize(("size", "blur"), [(20, False), (32, False), (33, True), (40, True)])
def test_simclr_blurs_above_32_px_only(size, blur):
    told = SimCLRAugment(size, blur=blur)(images(), some_keys())
    assert_bit_equal(SimCLRAugment(size)(images(), some_keys()), told)
    other = SimCLRAugment(size, blur=not blur)(images(), some_keys())
    assert (other[0] - told[0]).abs().max() > 0.01


def test_simclr_hands_its_strength_to_the_jitter():
    augment = SimCLRAugment(24, strength=0.5)
    assert [view[1].strength for view in (augment.view_a, augment.view_b)] == [0.5, 0.5]


def test_a_stage_that_is_added_leaves_the_draws_before_it():
    crop = RandomResizedCropFlip(24)
    assert_bit_equal(
        TwoViews(crop, ColorJitter(), RandomGrayscale(0.0))(images(), some_keys()),
        TwoViews(crop, ColorJitter())(images(), some_keys()),
    )


def test_the_views_may_have_stages_of_their_own():
    crop = RandomResizedCropFlip(24)
    augment = TwoViewAugment([crop, RandomGrayscale(1.0)], [crop, RandomGrayscale(0.0)])
    view_a, view_b = augment(images(), some_keys())
    assert_bit_equal(view_a[:, 0], view_a[:, 2])
    assert (view_b[:, 0] - view_b[:, 2]).abs().max() > 0.1


def test_any_module_of_images_and_keys_is_a_stage():
    class Inverse(nn.Module):
        def forward(self, batch: Tensor, keys: Tensor) -> Tensor:
            return 1 - batch

    crop = RandomResizedCropFlip(24)
    plain, inverse = TwoViews(crop)(images(), some_keys()), TwoViews(crop, Inverse())(images(), some_keys())
    assert_bit_equal(inverse, tuple(1 - view for view in plain))


# Errors


def test_two_views_say_that_there_is_no_stage():
    with pytest.raises(ValueError, match=r"^`stages` must hold at least one stage, got none\.$"):
        TwoViews()


@pytest.mark.parametrize("shape", [(7,), (8, 1), ()])
def test_views_say_that_keys_do_not_fit(shape):
    message = f"`keys` must have shape (8,), one for each image, got {shape}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SimCLRAugment(24)(images(), torch.zeros(shape, dtype=torch.int64))


def test_views_say_that_images_have_four_dimensions():
    with pytest.raises(ValueError, match=re.escape("`images` must have shape (n, c, h, w), got (3, 40, 44).")):
        SimCLRAugment(24)(images()[0], some_keys(3))


def test_views_say_how_many_channels_images_may_have():
    message = "`images` of ColorJitter must have 1 (grey) or 3 (RGB) channels, got 4."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SimCLRAugment(24)(images(8, 4), some_keys())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "`size` must be at least 1 pixel, got 0."),
        ({"size": 24, "strength": 3.0}, "`strength` must be in [0, 2.5], got 3.0."),
    ],
)
def test_simclr_says_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SimCLRAugment(**arguments)
