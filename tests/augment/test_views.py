"""Two views: what comes out, the same for an image wherever it is, and different from one another."""

import pytest
import torch
from cl_augment import (
    BYOLAugment,
    ColorJitter,
    GaussianBlur,
    LinearEvalAugment,
    RandomGrayscale,
    RandomResizedCropFlip,
    RandomStroke,
    RandomWarp,
    SimCLRAugment,
    Sobel,
    Solarize,
    TwoViewAugment,
    TwoViews,
    fold_in,
    sample_keys,
)
from torch import Tensor, nn
from torch.testing import assert_close

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(n: int = 8, c: int = 3, h: int = 40, w: int = 44) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 8, *, epoch: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=epoch)


def strokes() -> TwoViews:
    return TwoViews(RandomWarp(24, elastic=0.1), RandomStroke())


AUGMENTS = pytest.mark.parametrize(
    "augment",
    [SimCLRAugment(24), SimCLRAugment(40, blur=True), BYOLAugment(24), strokes()],
    ids=["small", "with blur", "byol", "strokes"],
)


def assert_bit_equal(actual, expected) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


def names(augment) -> list[list[str]]:
    """Classes of the stages of each view."""
    return [[type(stage).__name__ for stage in stages] for stages in augment.stages()]


# What comes out


@AUGMENTS
def test_views_are_float_squares_in_0_1(augment):
    _, _, *square = augment.stages()[0][0].shape_after(torch.Size([8, 3, 40, 44]))
    for view in augment(images(), some_keys()):
        assert view.shape == (8, 3, *square)
        assert square in ([24, 24], [40, 40])
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1


@AUGMENTS
def test_views_of_uint8_are_those_of_float(augment):
    expected = augment(images() / 255, some_keys())
    assert_close(augment(images(), some_keys()), expected, rtol=0, atol=1e-5)


@AUGMENTS
def test_views_of_float64_are_those_of_float32(augment):
    actual = augment(images().double() / 255, some_keys())
    assert actual[0].dtype == torch.float64
    assert_close(actual, tuple(v.double() for v in augment(images() / 255, some_keys())), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_views_of_half_types_are_those_of_float32_to_their_precision(dtype):
    augment, smooth = SimCLRAugment(24), torch.linspace(0.1, 0.9, 3 * 40 * 44).view(1, 3, 40, 44).expand(8, -1, -1, -1)
    actual = augment(smooth.to(dtype), some_keys())
    assert actual[0].dtype == dtype
    for view, expected in zip(actual, augment(smooth, some_keys()), strict=True):
        assert (view.float() - expected).abs().mean() < 10 * torch.finfo(dtype).eps


@AUGMENTS
@pytest.mark.parametrize("byte", [True, False], ids=["uint8", "float"])
def test_views_do_not_depend_on_how_the_images_lie_in_memory(augment, byte):
    batch = images() if byte else images() / 255
    wide = torch.zeros(8, 3, 80, 50, dtype=batch.dtype)
    wide[:, :, ::2, 6:] = batch
    laid_out = {
        "channels last": batch.to(memory_format=torch.channels_last),
        "steps": wide[:, :, ::2, 6:],
        "transposed": batch.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": batch.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    expected = augment(batch, some_keys())
    for one in laid_out.values():
        assert not one.is_contiguous()
        assert_bit_equal(augment(one, some_keys()), expected)


def test_views_of_an_expanded_image_are_those_of_its_copies():
    same = images(1).expand(8, -1, -1, -1)
    augment = SimCLRAugment(24)
    assert_bit_equal(augment(same, some_keys()), augment(same.contiguous(), some_keys()))


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
@pytest.mark.parametrize("blur", [False, True])
def test_simclr_takes_images_of_any_number_of_channels(channels, blur):
    augment = SimCLRAugment(24, hue=0.2 if channels == 3 else 0, blur=blur)
    for view in augment(images(8, channels), some_keys()):
        assert view.shape == (8, channels, 24, 24)
        assert view.min() >= 0
        assert view.max() <= 1
        assert len(view.unique(dim=0)) == 8


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_simclr_takes_lists_of_any_number_of_channels_and_sizes(channels):
    augment = SimCLRAugment(24, hue=0.2 if channels == 3 else 0, blur=True)
    batch = [images(1, channels, *size)[0] for size in ((40, 44), (9, 80), (64, 30))]
    one_by_one = [augment(image[None], some_keys(3)[i : i + 1]) for i, image in enumerate(batch)]
    assert_bit_equal(augment(batch, some_keys(3)), tuple(torch.cat(view) for view in zip(*one_by_one, strict=True)))


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_channels_that_are_alike_stay_alike(channels):
    batch = images(8, 1).expand(-1, channels, -1, -1)
    for view in SimCLRAugment(24, hue=0, blur=True)(batch, some_keys()):
        assert_close(view, view[:, :1].expand_as(view), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "augment",
    [SimCLRAugment(24), SimCLRAugment(40), SimCLRAugment(24, sobel=True), BYOLAugment(40)],
    ids=["small", "with blur", "sobel", "byol"],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_no_images_have_no_views(augment, dtype):
    for views in (augment(images(0).to(dtype), some_keys(0)), augment(images(0).to(dtype))):
        size = augment.stages()[0][0].size
        assert [view.shape for view in views] == [(0, 3, size, size)] * 2
        assert [view.dtype for view in views] == [torch.float32] * 2


def test_no_images_have_no_view_to_train_a_classifier_on():
    assert LinearEvalAugment(24)(images(0), some_keys(0)).shape == (0, 3, 24, 24)


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
        out = images()
        for place, stage in enumerate(stages):
            out = stage(out, fold_in(fold_in(some_keys(), view), place))
        expected.append(out)
    assert_bit_equal(SimCLRAugment(40)(images(), some_keys()), tuple(expected))


def test_byol_is_two_chains_with_a_key_for_each_view_and_stage():
    shared = [
        RandomResizedCropFlip(24),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        RandomGrayscale(),
    ]
    expected = []
    for view, own in enumerate([[GaussianBlur(1.0)], [GaussianBlur(0.1), Solarize(0.2)]]):
        out = images()
        for place, stage in enumerate([*shared, *own]):
            out = stage(out, fold_in(fold_in(some_keys(), view), place))
        expected.append(out)
    assert_bit_equal(BYOLAugment(24)(images(), some_keys()), tuple(expected))


@pytest.mark.parametrize(("size", "blur"), [(20, False), (32, False), (33, True), (40, True)])
def test_simclr_blurs_above_32_px_only(size, blur):
    told = SimCLRAugment(size, blur=blur)(images(), some_keys())
    assert_bit_equal(SimCLRAugment(size)(images(), some_keys()), told)
    other = SimCLRAugment(size, blur=not blur)(images(), some_keys())
    assert (other[0] - told[0]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ({}, ["ColorJitter", "RandomGrayscale"]),
        ({"strength": 0}, ["RandomGrayscale"]),
        ({"grey": 0}, ["ColorJitter"]),
        ({"strength": 0, "grey": 0}, []),
        ({"strength": 0, "grey": 0, "blur": True}, ["GaussianBlur"]),
        ({"sobel": True}, ["Sobel"]),
        ({"sobel": True, "blur": True}, ["Sobel", "GaussianBlur"]),
        ({"blur": True}, ["ColorJitter", "RandomGrayscale", "GaussianBlur"]),
        ({"extra": [Solarize()]}, ["ColorJitter", "RandomGrayscale", "Solarize"]),
    ],
    ids=str,
)
def test_the_papers_ablations_are_arguments_of_simclr(arguments, stages):
    assert names(SimCLRAugment(24, **arguments)) == [["RandomResizedCropFlip", *stages]] * 2


def test_simclr_without_colours_and_blur_is_the_crop():
    augment = SimCLRAugment(40, strength=0, grey=0, blur=False)
    expected = TwoViews(RandomResizedCropFlip(40))(images(), some_keys())
    assert_bit_equal(augment(images(), some_keys()), expected)


def test_simclr_of_edges_is_the_crop_and_sobels_filter():
    expected = TwoViews(RandomResizedCropFlip(24), Sobel())(images(), some_keys())
    assert_bit_equal(SimCLRAugment(24, sobel=True)(images(), some_keys()), expected)


def test_simclr_hands_its_numbers_to_its_stages():
    augment = SimCLRAugment(24, strength=0.5, hue=0.1, grey=0.3, interpolation="bilinear", antialias=False)
    for crop, jitter, grey in augment.stages():
        assert (crop.size, crop.scale, crop.interpolation, crop.antialias) == (24, (0.08, 1.0), "bilinear", False)
        assert (jitter.strength, jitter.brightness, jitter.contrast, jitter.saturation) == (0.5, 0.8, 0.8, 0.8)
        assert (jitter.hue, jitter.p, grey.p) == (0.1, 0.8, 0.3)


def test_byol_blurs_and_solarises_its_views_unequally():
    view_a, view_b = BYOLAugment(24).stages()
    assert names(BYOLAugment(24)) == [
        ["RandomResizedCropFlip", "ColorJitter", "RandomGrayscale", "GaussianBlur"],
        ["RandomResizedCropFlip", "ColorJitter", "RandomGrayscale", "GaussianBlur", "Solarize"],
    ]
    assert (view_a[3].p, view_b[3].p, view_b[4].p) == (1.0, 0.1, 0.2)  # Table 6
    for _, jitter, grey, blur, *_ in (view_a, view_b):
        assert (jitter.strength, jitter.brightness, jitter.contrast) == (1.0, 0.4, 0.4)
        assert (jitter.saturation, jitter.hue, jitter.p) == (0.2, 0.1, 0.8)
        assert (grey.p, blur.sigma) == (0.2, (0.1, 2.0))


def test_a_classifier_is_trained_on_the_crop():
    expected = RandomResizedCropFlip(24)(images(), fold_in(fold_in(some_keys(), 0), 0))
    assert_bit_equal(LinearEvalAugment(24)(images(), some_keys()), expected)


@pytest.mark.parametrize("preset", [SimCLRAugment, BYOLAugment])
def test_extra_stages_follow_the_others_in_both_views(preset):
    inverse = Solarize(1.0, threshold=0.0)
    plain = preset(24)(images(), some_keys())
    assert_bit_equal(preset(24, extra=[inverse])(images(), some_keys()), tuple(1 - view for view in plain))


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


def test_augmenting_leaves_the_images_alone_when_no_crop_copies_them():
    batch = images() / 255
    before = batch.clone()
    TwoViews(ColorJitter(0.5), RandomGrayscale(0.5))(batch, some_keys())
    SimCLRAugment(40).finish((batch, batch), some_keys())
    assert torch.equal(batch, before)


def test_what_a_module_returns_is_its_own():
    """It may keep it: the stages behind it change a copy."""

    class Returns(nn.Module):
        def __init__(self, kept: Tensor) -> None:
            super().__init__()
            self.kept = kept

        def forward(self, images: Tensor, keys: Tensor) -> Tensor:
            return self.kept[: len(images)]

    kept = images(h=16, w=16) / 255
    augment = TwoViews(RandomResizedCropFlip(16), Returns(kept), Solarize(0.5), ColorJitter(0.5), RandomGrayscale(0.5))
    before = kept.clone()
    augment(images(), some_keys())
    assert torch.equal(kept, before)


def test_any_module_of_images_and_keys_is_a_stage():
    class Inverse(nn.Module):
        def forward(self, batch: Tensor, keys: Tensor) -> Tensor:
            return 1 - batch

    crop = RandomResizedCropFlip(24)
    plain, inverse = TwoViews(crop)(images(), some_keys()), TwoViews(crop, Inverse())(images(), some_keys())
    assert_bit_equal(inverse, tuple(1 - view for view in plain))


# How they are finished


PRESETS = pytest.mark.parametrize("preset", [SimCLRAugment, BYOLAugment, LinearEvalAugment])


def views(augment, batch: Tensor | None = None) -> Tensor:
    return augment.stacked(images() if batch is None else batch, some_keys())


@PRESETS
def test_views_are_normalised_by_mean_and_std(preset):
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = (views(preset(24)) - mean) / std
    assert_close(views(preset(24, mean=MEAN, std=STD)), expected, rtol=0, atol=2e-6)


@PRESETS
def test_one_mean_and_std_are_those_of_every_channel(preset):
    expected = (views(preset(24)) - 0.5) / 0.25
    assert_close(views(preset(24, mean=[0.5], std=[0.25])), expected, rtol=0, atol=1e-6)


@PRESETS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("byte", [True, False], ids=["uint8", "float"])
def test_views_are_computed_as_ever_and_then_have_the_dtype(preset, dtype, byte):
    batch = images() if byte else images() / 255
    assert_bit_equal(views(preset(24, dtype=dtype), batch), views(preset(24), batch).to(dtype))


@PRESETS
def test_views_may_be_laid_out_channels_last(preset):
    actual = preset(24, memory_format=torch.channels_last)(images(), some_keys())
    for view in [actual] if isinstance(actual, Tensor) else actual:
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert_bit_equal(views(preset(24, memory_format=torch.channels_last)), views(preset(24)))


def test_views_are_normalised_before_they_lose_precision():
    last = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    actual = views(SimCLRAugment(24, mean=MEAN, std=STD, **last))
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_bit_equal(actual, views(SimCLRAugment(24, mean=MEAN, std=STD)).to(torch.bfloat16))


def test_the_parts_of_a_call_are_finished_once():
    augment = SimCLRAugment(24, mean=MEAN, std=STD, dtype=torch.float64)
    cuts = augment.cut(images(), some_keys())
    assert_bit_equal(cuts, SimCLRAugment(24).cut(images(), some_keys()))
    assert_bit_equal(augment.finish(cuts, some_keys()), augment(images(), some_keys()))


# Drawn and replayed


@AUGMENTS
def test_a_call_is_a_draw_and_a_replay(augment):
    params = augment.draw(images(), some_keys())
    assert_bit_equal(augment.replay(images(), params), augment(images(), some_keys()))


def test_a_call_of_linear_eval_is_a_draw_and_a_replay():
    augment = LinearEvalAugment(24)
    actual = augment.replay(images(), augment.draw(images(), some_keys()))
    assert_bit_equal(actual, augment(images(), some_keys()))


def test_a_call_with_a_list_is_a_draw_and_a_replay():
    augment, batch = SimCLRAugment(24), [images(1, 3, *size)[0] for size in ((40, 44), (9, 80), (64, 30))]
    params = augment.draw(batch, some_keys(3))
    assert_bit_equal(augment.replay(batch, params), augment(batch, some_keys(3)))


def test_a_call_with_sizes_is_that_with_a_list():
    augment, sizes = SimCLRAugment(24), torch.tensor([[40, 44], [9, 30], [33, 12]])
    batch = [image[:, :height, :width] for image, (height, width) in zip(images(3), sizes.tolist(), strict=True)]
    assert_bit_equal(augment(images(3), some_keys(3), sizes=sizes), augment(batch, some_keys(3)))


@AUGMENTS
@pytest.mark.parametrize("n", [0, 1, 8])
def test_what_is_drawn_has_a_row_for_each_image(augment, n):
    params = augment.draw(images(n), some_keys(n))
    assert [len(chain) for chain in params] == [len(stages) for stages in augment.stages()]
    for drawn in (drawn for chain in params for drawn in chain):
        assert drawn
        assert {len(values) for values in drawn.values()} == {n}


@AUGMENTS
def test_what_is_drawn_for_an_image_does_not_depend_on_the_others(augment):
    whole, part = augment.draw(images(), some_keys()), augment.draw(images(3), some_keys()[2:5])
    for chain, chain_part in zip(whole, part, strict=True):
        for drawn, drawn_part in zip(chain, chain_part, strict=True):
            assert_bit_equal({name: values[2:5] for name, values in drawn.items()}, drawn_part)


def test_draws_may_be_changed_before_they_are_replayed():
    augment = SimCLRAugment(24)
    params = augment.draw(images(), some_keys())
    for _, jitter, grey in params:
        jitter["batch_prob"][:], grey["batch_prob"][:] = False, False
    crops = TwoViews(RandomResizedCropFlip(24))(images(), some_keys())
    assert_bit_equal(augment.replay(images(), params), crops)
    for crop, _, _ in params:
        crop["flip"] = ~crop["flip"]
    assert_close(augment.replay(images(), params), tuple(view.flip(3) for view in crops), rtol=0, atol=1e-6)


def test_a_change_of_one_images_draw_changes_no_other_image():
    augment = SimCLRAugment(24)
    params = augment.draw(images(), some_keys())
    for _, jitter, _ in params:
        jitter["brightness"][5], jitter["batch_prob"][5] = 0.0, True
    for view, before in zip(augment.replay(images(), params), augment(images(), some_keys()), strict=True):
        assert (view != before).flatten(1).any(dim=1).tolist() == [i == 5 for i in range(8)]


def test_a_replay_leaves_draws_and_images_alone():
    augment, batch = SimCLRAugment(40), images() / 255
    params = augment.draw(batch, some_keys())
    first = augment.replay(batch, params)
    assert_bit_equal(params, augment.draw(batch, some_keys()))
    assert_bit_equal(augment.replay(batch, params), first)
    assert_bit_equal(batch, images() / 255)
