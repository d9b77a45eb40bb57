"""The random crop and flip: draws and replays torchvision's crop, and moves what Kornia has besides images."""

import re

import pytest
import torch
from cl_augment import LinearEvalAugment, RandomResizedCropFlip, fold_in, sample_keys, uniform
from cl_augment._crop import random_boxes
from cl_augment._resample import Boxes
from kornia.augmentation import AugmentationSequential
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def images(n: int = 16, c: int = 3, h: int = 40, w: int = 56) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 16) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def boxes_of(sizes: Tensor) -> list[list[int]]:
    """Top, left, height, width by `random_boxes`, whose law has tests of its own."""
    u = uniform(some_keys(len(sizes)), 23)[:, :22]
    return torch.stack(random_boxes(u, sizes, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)), dim=1).tolist()


def assert_bit_equal(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "no antialias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_random_crop_gives_torchvisions_pixels_of_what_it_draws(interpolation, antialias, dtype):
    crop = RandomResizedCropFlip(16, interpolation=interpolation, antialias=antialias)
    batch = images() if dtype == torch.float32 else (images() * 255).to(dtype)
    drawn = crop.draw(some_keys(), batch.shape)
    boxes = torch.stack([drawn[name] for name in Boxes._fields], dim=1).tolist()
    assert 0 < drawn["flip"].sum() < 16
    actual = crop(batch, some_keys())
    floats = batch / 255 if dtype == torch.uint8 else batch
    for i, flip in enumerate(drawn["flip"].tolist()):
        view = tv.resized_crop(floats[i], *boxes[i], [16, 16], interpolation=MODES[interpolation], antialias=antialias)
        view = tv.hflip(view) if flip else view
        assert_close(actual[i], view.clamp(0, 1), rtol=0, atol=2e-5)


def test_random_crop_draws_the_boxes_of_its_keys():
    drawn = RandomResizedCropFlip(16).draw(some_keys(), torch.Size([16, 3, 40, 56]))
    assert list(drawn) == ["top", "left", "height", "width", "flip"]
    assert torch.stack(list(drawn.values())[:4], dim=1).tolist() == boxes_of(torch.tensor([40, 56]).expand(16, 2))
    assert drawn["flip"].tolist() == [last < 0.5 for last in uniform(some_keys(), 23)[:, 22].tolist()]


def test_random_crop_draws_a_box_within_each_size():
    sizes = torch.tensor([(40, 56), (2, 2), (10, 300), (33, 20)] * 4)
    drawn = RandomResizedCropFlip(16).draw(some_keys(), torch.Size([16, 3, 90, 300]), sizes)
    assert torch.stack(list(drawn.values())[:4], dim=1).tolist() == boxes_of(sizes)


@pytest.mark.parametrize("crop", [RandomResizedCropFlip(16), RandomResizedCropFlip(60, interpolation="bilinear")])
def test_random_crop_replays_what_it_has_drawn(crop):
    assert_bit_equal(crop.replay(images(), crop.draw(some_keys(), images().shape)), crop(images(), some_keys()))


def test_what_random_crop_draws_can_be_changed_and_replayed():
    crop = RandomResizedCropFlip(16)
    drawn = crop.draw(some_keys(), images().shape)
    drawn["flip"] = ~drawn["flip"]
    assert_close(crop.replay(images(), drawn), crop(images(), some_keys()).flip(3), rtol=0, atol=2e-6)
    for name, edge in zip(Boxes._fields, (24, 40, 16, 16), strict=True):
        drawn[name] = torch.full((16,), edge)
    drawn["flip"] = torch.zeros(16, dtype=torch.bool)
    assert_bit_equal(crop.replay(images(), drawn), images()[:, :, 24:, 40:])


def test_random_crop_keeps_to_its_scale_and_ratio():
    drawn = RandomResizedCropFlip(16, scale=(0.25, 0.25), ratio=(1.0, 1.0)).draw(
        some_keys(), torch.Size([16, 3, 40, 40])
    )
    assert drawn["height"].unique().tolist() == drawn["width"].unique().tolist() == [20]


@pytest.mark.parametrize("interpolation", MODES)
def test_random_crop_clips_what_interpolation_overshoots(interpolation):
    views = RandomResizedCropFlip(32, interpolation=interpolation)((images() > 0.5).float(), some_keys())
    assert views.min() == 0
    assert views.max() == 1


@pytest.mark.parametrize(("flip", "rising"), [(0.0, True), (1.0, False)])
def test_random_crop_flips_none_or_all_when_asked(flip, rising):
    ramp = torch.linspace(0, 1, 8).expand(16, 1, 8, 8).contiguous()
    views = RandomResizedCropFlip(8, flip=flip, interpolation="bilinear")(ramp, some_keys())
    assert ((views[..., -1] > views[..., 0]) == rising).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_random_crop_keeps_the_floating_point_type(dtype):
    views = RandomResizedCropFlip(16)(images().to(dtype), some_keys())
    assert views.dtype == dtype
    assert_close(views.double(), RandomResizedCropFlip(16)(images().double(), some_keys()), rtol=0, atol=1e-2)


def test_random_crop_of_uint8_is_that_of_float_up_to_rounding():
    batch, crop = (images() * 255).to(torch.uint8), RandomResizedCropFlip(16)
    assert_close(crop(batch, some_keys()), crop(batch / 255, some_keys()), rtol=0, atol=1e-6)


def test_random_crop_leaves_its_input_alone():
    batch = images()
    RandomResizedCropFlip(16)(batch, some_keys())
    assert_bit_equal(batch, images())


def test_random_crop_without_keys_follows_its_generator():
    crop = RandomResizedCropFlip(16)
    first, again, other = (crop(images(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert_bit_equal(first, again)
    assert (first - other).abs().max() > 0.1


def test_random_crop_knows_the_shape_of_its_views():
    crop = RandomResizedCropFlip(16)
    assert crop.shape_after(images().shape) == crop(images(), some_keys()).shape == (16, 3, 16, 16)


def test_random_crop_prints_its_arguments():
    assert repr(RandomResizedCropFlip(16, scale=(0.2, 1.0), ratio=(0.5, 2.0), flip=0.25, antialias=False)) == (
        "RandomResizedCropFlip(16, scale=(0.2, 1.0), ratio=(0.5, 2.0), flip=0.25, interpolation='bicubic', "
        "antialias=False)"
    )


def test_linear_eval_augment_is_the_random_crop_and_flip_of_the_first_view_and_stage():
    keys = fold_in(fold_in(some_keys(), 0), 0)
    assert_bit_equal(LinearEvalAugment(16)(images(), some_keys()), RandomResizedCropFlip(16)(images(), keys))


# Within Kornia


def drawn_boxes() -> dict[str, Tensor]:
    return RandomResizedCropFlip(16).draw(some_keys(), images().shape)


def test_the_transformation_maps_the_corners_of_the_box_to_those_of_the_view():
    drawn = drawn_boxes()
    matrices = RandomResizedCropFlip(16).compute_transformation(images().double(), drawn, {})
    for i, matrix in enumerate(matrices):
        top, left, height, width = (drawn[name][i].item() for name in Boxes._fields)
        # edges lie half a pixel outside of the centres of the first and last pixel
        x, y = [left - 0.5, left + width - 0.5], [top - 0.5, top + height - 0.5]
        corners = torch.tensor([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]]).double()
        a, b = (15.5, -0.5) if drawn["flip"][i] else (-0.5, 15.5)
        expected = torch.tensor([[a, -0.5, 1], [b, -0.5, 1], [b, 15.5, 1], [a, 15.5, 1]]).double()
        assert_close(corners @ matrix.T, expected, rtol=0, atol=1e-12)


def test_the_transformation_finds_where_the_pixels_have_gone():
    # the value of each pixel is its place, so a view holds the places that it shows, save where it repeats a border
    crop = RandomResizedCropFlip(16, interpolation="bilinear", antialias=False)
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    batch = torch.stack([x, y]).expand(16, 2, 40, 56).contiguous() / 64
    views = crop.replay(batch.double(), drawn_boxes()) * 64
    matrices = crop.compute_transformation(batch.double(), drawn_boxes(), {})
    found = torch.einsum("nij,njhw->nihw", matrices, torch.cat([views, torch.ones_like(views[:, :1])], dim=1))
    here = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    for axis, expected in ((0, here[1]), (1, here[0])):
        inner = found[:, axis, 4:12, 4:12]
        assert_close(inner, expected[4:12, 4:12].double().expand(16, 8, 8), rtol=0, atol=1e-6)


def test_kornia_moves_keypoints_with_the_pixels():
    crop = RandomResizedCropFlip(16)
    containers = AugmentationSequential(crop, data_keys=["input", "keypoints"])
    points = torch.rand(16, 5, 2, generator=torch.Generator().manual_seed(0)) * 40
    with torch.random.fork_rng():
        torch.manual_seed(0)
        views, moved = containers(images(), points)
    drawn = containers._params[0].data
    assert_bit_equal(views, crop.replay(images(), drawn))
    top, left, height, width = (drawn[name][:, None] for name in Boxes._fields)
    x = (points[..., 0] + 0.5 - left) * 16 / width - 0.5
    x = torch.where(drawn["flip"][:, None], 15 - x, x)
    y = (points[..., 1] + 0.5 - top) * 16 / height - 0.5
    assert_close(moved, torch.stack([x, y], dim=-1), rtol=0, atol=1e-4)


def test_kornia_crops_masks_by_torchvisions_nearest_pixel():
    crop = RandomResizedCropFlip(16)
    containers = AugmentationSequential(crop, data_keys=["input", "mask"])
    masks = torch.randint(0, 9, (16, 1, 40, 56), generator=torch.Generator().manual_seed(0)).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, cropped = containers(images(), masks)
    drawn = containers._params[0].data
    for i, flip in enumerate(drawn["flip"].tolist()):
        box = [drawn[name][i].item() for name in Boxes._fields]
        view = tv.resized_crop(masks[i], *box, [16, 16], interpolation=InterpolationMode.NEAREST_EXACT)
        assert_bit_equal(cropped[i], tv.hflip(view) if flip else view)


@pytest.mark.parametrize("size", [8, 16, 50])
def test_a_mask_shows_the_label_that_most_of_the_pixels_image_has(size):
    crop = RandomResizedCropFlip(size, interpolation="bilinear", antialias=False)
    labels = torch.zeros(16, 1, 40, 56)
    labels[:, :, 13:31, 22:40] = 1
    view = crop.replay(labels, drawn_boxes())
    mask = crop.apply_transform_mask(labels, drawn_boxes(), {})
    assert 0 < mask.mean() < 1
    # where both neighbours weigh the same in one direction, either label is nearest
    clear = (view - 0.5).abs() > 0.26
    assert clear.double().mean() > 0.9
    assert_bit_equal(mask[clear], view[clear].round())


# Errors


def expect(error: type[Exception], message: str, call, *arguments, **named) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(*arguments, **named)


@pytest.mark.parametrize("make", [RandomResizedCropFlip, LinearEvalAugment])
@pytest.mark.parametrize("size", [7, 0, -1])
def test_crops_say_that_the_size_is_below_8(make, size):
    expect(ValueError, f"`size` must be at least 8 pixels, got {size}.", make, size)


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
        ({"interpolation": "nearest"}, "`interpolation` must be 'bilinear' or 'bicubic', got 'nearest'."),
    ],
)
def test_random_crop_says_what_is_out_of_range(arguments, message):
    expect(ValueError, message, RandomResizedCropFlip, 16, **arguments)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (torch.arange(3), ValueError, "`keys` must have shape (2,), one for each image, got (3,)."),
        (torch.arange(2)[:, None], ValueError, "`keys` must have shape (2,), one for each image, got (2, 1)."),
        (torch.ones(2), TypeError, "`keys` must be int64, as `sample_keys` makes them, got torch.float32."),
        (7, TypeError, "`keys` must be int64, as `sample_keys` makes them, got int."),
    ],
)
@pytest.mark.parametrize("make", [RandomResizedCropFlip, LinearEvalAugment])
def test_random_crops_say_that_keys_do_not_fit(make, keys, error, message):
    expect(error, message, make(16), images(2), keys)
