"""Our stages in Kornia's containers, and Kornia's augmentations as stages of ours."""

import re

import kornia.augmentation as K
import pytest
import torch
from cl_augment import (
    ColorJitter,
    GaussianBlur,
    KorniaStage,
    RandomGrayscale,
    RandomResizedCropFlip,
    SimCLRAugment,
    Sobel,
    Solarize,
    TwoViews,
    fold_in,
    sample_keys,
)
from kornia.augmentation.container import ImageSequential
from torch import Tensor, nn
from torch.testing import assert_close


def images(n: int = 8, c: int = 3, h: int = 24, w: int = 28) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 8) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def says(kind: type[Exception], message: str):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.fixture(autouse=True)
def _a_seed_of_its_own():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# Ours in Kornia's containers

OURS = {
    "crop": lambda c: RandomResizedCropFlip(16),
    "jitter": lambda c: ColorJitter(hue=0.2 if c == 3 else 0),
    "grey": lambda c: RandomGrayscale(0.5),
    "blur": lambda c: GaussianBlur(),
    "solarize": lambda c: Solarize(0.5),
    "sobel": lambda c: Sobel(0.5),
}
EACH_OF_OURS = pytest.mark.parametrize("stage", OURS)
CONTAINERS = pytest.mark.parametrize("container", [K.AugmentationSequential, ImageSequential], ids=lambda c: c.__name__)


@EACH_OF_OURS
@CONTAINERS
@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_ours_runs_in_kornias_containers_before_kornias(stage, container, channels):
    batch = images(8, channels)
    erasing = K.RandomErasing(p=1.0, scale=(0.2, 0.3), ratio=(0.9, 1.1))
    out = container(OURS[stage](channels), erasing)(batch)
    side = (16, 16) if stage == "crop" else (24, 28)
    assert out.shape == (8, channels, *side)
    assert ((out == 0).all(dim=1).flatten(1).sum(dim=1) > 0.1 * side[0] * side[1]).all()  # erased
    assert_close(batch, images(8, channels), rtol=0, atol=0)


@EACH_OF_OURS
@CONTAINERS
def test_ours_draws_for_each_image_in_kornias_containers(stage, container):
    if stage in ("grey", "sobel", "solarize"):  # all they draw is whether they apply
        same, kinds = images(1).expand(32, -1, -1, -1), 2
        assert len(container(OURS[stage](3))(same).unique(dim=0)) == kinds
    else:
        same = images(1).expand(8, -1, -1, -1)
        applied = container(RandomResizedCropFlip(16) if stage == "crop" else type(OURS[stage](3))(p=1.0))
        assert len(applied(same).unique(dim=0)) == 8


@EACH_OF_OURS
@CONTAINERS
def test_ours_follows_torchs_seed_in_kornias_containers(stage, container):
    chain = container(OURS[stage](3), K.RandomErasing(p=0.5))
    torch.manual_seed(1)
    first, second = chain(images()), chain(images())
    torch.manual_seed(1)
    assert_close(chain(images()), first, rtol=0, atol=0)
    assert (second - first).abs().max() > 0.1


@EACH_OF_OURS
@CONTAINERS
def test_ours_is_replayed_by_kornias_params(stage, container):
    chain = container(OURS[stage](3), K.RandomErasing(p=0.5))
    first = chain(images())
    params = chain._params  # where Kornia's containers keep what they drew
    assert (chain(images()) - first).abs().max() > 0.1
    assert_close(chain(images(), params=params), first, rtol=0, atol=0)


@EACH_OF_OURS
def test_ours_in_a_container_is_its_own_replay(stage):
    ours = OURS[stage](3)
    chain = ImageSequential(ours)
    out = chain(images())
    assert_close(ours.replay(images(), chain._params[0].data), out, rtol=0, atol=0)


@pytest.mark.parametrize("stage", [name for name in OURS if name != "crop"])
def test_ours_leaves_the_skipped_images_of_a_container_alone(stage):
    chain = ImageSequential(OURS[stage](3))
    skipped = ~(out := chain(images())).ne(images()).flatten(1).any(dim=1)
    assert skipped.tolist() == (~chain._params[0].data["batch_prob"]).tolist()
    assert skipped.any()
    assert not skipped.all()
    assert out.shape == images().shape


def test_all_of_ours_follow_one_another_in_a_container():
    chain = K.AugmentationSequential(*(make(3) for make in OURS.values()), K.RandomErasing(p=1.0))
    assert len(chain(images(1).expand(8, -1, -1, -1)).unique(dim=0)) == 8


def ramps(n: int, height: int, width: int) -> Tensor:
    """Images whose channels tell the column and the row of a pixel."""
    x = torch.arange(width)[None, :].expand(height, -1) / (width - 1)
    y = torch.arange(height)[:, None].expand(-1, width) / (height - 1)
    return torch.stack([x, y, torch.zeros_like(x)]).expand(n, -1, -1, -1)


def test_a_crop_takes_masks_along():
    crop = RandomResizedCropFlip(16, scale=(0.3, 1.0))
    chain = K.AugmentationSequential(crop, K.RandomErasing(p=0.0), data_keys=["input", "mask"])
    out, mask = chain(ramps(16, 48, 56), ramps(16, 48, 56))
    assert mask.shape == (16, 3, 16, 16)
    assert set(mask[:, 0].unique().tolist()) <= set(ramps(1, 48, 56)[0, 0, 0].tolist())  # nearest: no new values
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert_close(mask[inner], out[inner], rtol=0, atol=0.6 / 47)


def test_a_crop_takes_keypoints_along():
    crop = RandomResizedCropFlip(16, scale=(0.3, 1.0))
    chain = K.AugmentationSequential(crop, K.RandomErasing(p=0.0), data_keys=["input", "keypoints"])
    batch = ramps(16, 48, 56)
    anywhere = torch.zeros(16, 1, 2)
    out, _ = chain(batch, anywhere)
    assert {flip.item() for flip in chain._params[0].data["flip"]} == {False, True}
    # which point of the image the pixel in row 9 and column 6 of its view shows
    points = out[:, :2, 9, 6] * torch.tensor([55.0, 47.0])
    _, moved = chain(batch, points[:, None], params=chain._params)
    expected = torch.tensor([6.0, 9.0]).expand(16, 1, 2)
    assert_close(moved, expected, rtol=0, atol=0.02)  # the filter keeps a ramp to 0.01 px


def test_colour_stages_leave_masks_and_keypoints():
    stages = (make(3) for name, make in OURS.items() if name != "crop")
    chain = K.AugmentationSequential(*stages, data_keys=["input", "mask", "keypoints"])
    mask, points = images(8, 1), torch.rand(8, 2, 2)
    _, mask_after, points_after = chain(images(), mask, points)
    assert_close((mask_after, points_after), (mask, points), rtol=0, atol=0)


# Kornia's as stages of ours

FOREIGN = {
    "erasing": lambda: K.RandomErasing(p=1.0),
    "affine": lambda: K.RandomAffine(30.0, translate=(0.1, 0.1), scale=(0.8, 1.2), p=1.0),
    "perspective": lambda: K.RandomPerspective(0.3, p=1.0),
    "posterize": lambda: K.RandomPosterize((1, 7), p=1.0),
    "flip": lambda: K.RandomHorizontalFlip(p=0.5),
    "shuffle": lambda: K.RandomChannelShuffle(p=1.0),
    "noise": lambda: K.RandomGaussianNoise(std=0.1, p=1.0),
    "pepper": lambda: K.RandomSaltAndPepperNoise(p=1.0),
    "brightness": lambda: K.RandomBrightness((0.5, 1.5), p=0.7),
    "crop": lambda: K.RandomResizedCrop((12, 12)),
}
EACH_FOREIGN = pytest.mark.parametrize("foreign", FOREIGN)


def with_foreign(foreign: str) -> TwoViews:
    return TwoViews(RandomResizedCropFlip(16), FOREIGN[foreign]())


@EACH_FOREIGN
def test_views_with_foreign_stages_are_the_same_in_another_order(foreign):
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    actual = with_foreign(foreign)(images()[order], some_keys()[order])
    expected = tuple(view[order] for view in with_foreign(foreign)(images(), some_keys()))
    assert_close(actual, expected, rtol=0, atol=0)


@EACH_FOREIGN
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_views_with_foreign_stages_are_the_same_in_smaller_batches(foreign, parts):
    batches = zip(images().tensor_split(parts), some_keys().tensor_split(parts), strict=True)
    views = [with_foreign(foreign)(*batch) for batch in batches]
    actual = tuple(torch.cat(view) for view in zip(*views, strict=True))
    assert_close(actual, with_foreign(foreign)(images(), some_keys()), rtol=0, atol=0)


@EACH_FOREIGN
def test_foreign_stages_with_keys_leave_torchs_generator_alone(foreign):
    before = torch.get_rng_state()
    first = with_foreign(foreign)(images(), some_keys())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert_close(with_foreign(foreign)(images(), some_keys()), first, rtol=0, atol=0)


@EACH_FOREIGN
def test_foreign_stages_draw_for_each_image_and_view(foreign):
    view_a, view_b = TwoViews(FOREIGN[foreign]())(images(1).expand(8, -1, -1, -1), some_keys())
    few = {"flip": 2, "posterize": 3, "shuffle": 3}  # those with few outcomes
    assert len(view_a.unique(dim=0)) >= few.get(foreign, 6)
    assert not torch.equal(view_a, view_b)


@EACH_FOREIGN
def test_what_a_foreign_stage_draws_is_what_kornia_draws_for_one_image_seeded_by_its_key(foreign):
    augment, module = TwoViews(FOREIGN[foreign]()), FOREIGN[foreign]()
    params = augment.draw(images(), some_keys())
    for view in (0, 1):
        for i, key in enumerate(fold_in(fold_in(some_keys(), view), 0).tolist()):
            torch.manual_seed(key)
            expected = module.forward_parameters(torch.Size([1, 3, 24, 28]))
            for name, values in params[view][0].items():
                assert_close(values[i : i + 1], expected[name], rtol=0, atol=0)


@EACH_FOREIGN
def test_foreign_stages_are_drawn_and_replayed(foreign):
    augment = with_foreign(foreign)
    params = augment.draw(images(), some_keys())
    assert {len(values) for chain in params for drawn in chain for values in drawn.values()} == {8}
    assert_close(augment.replay(images(), params), augment(images(), some_keys()), rtol=0, atol=0)


@EACH_FOREIGN
def test_no_images_have_no_views_with_foreign_stages(foreign):
    side = 12 if foreign == "crop" else 16
    assert [view.shape for view in with_foreign(foreign)(images(0), some_keys(0))] == [(0, 3, side, side)] * 2


@EACH_FOREIGN
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_foreign_stages_keep_the_dtype_of_the_images(foreign, dtype):
    assert with_foreign(foreign)(images().to(dtype), some_keys())[0].dtype == dtype


def test_foreign_stages_may_be_extra_ones_of_a_preset():
    plain = SimCLRAugment(16)(images(), some_keys())
    erased = SimCLRAugment(16, extra=[K.RandomErasing(p=1.0, scale=(0.2, 0.3))])(images(), some_keys())
    for view, before in zip(erased, plain, strict=True):
        changed = view != before
        assert changed.flatten(1).any(dim=1).all()
        assert (view[changed] == 0).all()


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_foreign_stages_take_lists_and_any_channels_behind_a_crop(channels):
    augment = SimCLRAugment(16, hue=0, extra=[K.RandomErasing(p=1.0), K.RandomAffine(20.0, p=0.5)])
    batch = [images(1, channels, *size)[0] for size in ((24, 28), (9, 40), (33, 12))]
    one_by_one = [augment(image[None], some_keys(3)[i : i + 1]) for i, image in enumerate(batch)]
    expected = tuple(torch.cat(view) for view in zip(*one_by_one, strict=True))
    assert_close(augment(batch, some_keys(3)), expected, rtol=0, atol=0)


def test_augmentations_with_foreign_stages_can_be_moved():
    augment = TwoViews(RandomResizedCropFlip(16), K.RandomBrightness((0.5, 1.5), p=1.0))
    before = augment(images(), some_keys())
    assert_close(augment.to("cpu")(images(), some_keys()), before, rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_foreign_stage_applies_with_its_probability(p):
    n = 4000
    drawn = KorniaStage(K.RandomHorizontalFlip(p=p)).draw(some_keys(n), torch.Size([n, 1, 8, 8]))
    four_deviations = 4 * (p * (1 - p) / n) ** 0.5
    assert drawn["batch_prob"].float().mean().item() == pytest.approx(p, abs=four_deviations + 1e-9)


def test_a_foreign_stage_draws_its_parameter_uniformly():
    n = 2000
    module = K.RandomBrightness((0.5, 1.5), p=1.0)
    factor = KorniaStage(module).draw(some_keys(n), torch.Size([n, 1, 8, 8]))["brightness_factor"].flatten()
    place = (torch.arange(n) + 0.5) / n
    distance = (factor.sort().values - 0.5 - place).abs().max().item()  # Kolmogorov and Smirnov's
    assert distance < 1.95 / n**0.5  # exceeded once in a thousand samples


def test_without_keys_foreign_stages_follow_torchs_seed():
    augment = with_foreign("affine")
    torch.manual_seed(1)
    first, second = augment(images()), augment(images())
    torch.manual_seed(1)
    assert_close(augment(images()), first, rtol=0, atol=0)
    assert (second[0] - first[0]).abs().max() > 0.1


# What cannot be a stage


class _NoisyStage(K.IntensityAugmentationBase2D):
    """Draws where it is applied, not where its parameters are."""

    def apply_transform(self, input: Tensor, params, flags, transform=None) -> Tensor:  # noqa: A002
        return input + torch.rand_like(input)


@pytest.mark.parametrize("n", [0, 1, 2, 8])
@pytest.mark.parametrize("module", [K.ColorJiggle, K.ColorJitter])
def test_an_order_drawn_for_a_whole_batch_is_refused(module, n):
    message = (
        f"`order` of Kornia's {module.__name__} is drawn once for a whole batch, so it cannot follow from the key of "
        "an image."
    )
    with says(ValueError, message):
        TwoViews(module(0.1, 0.1, 0.1, 0.1))(images(n), some_keys(n))


@pytest.mark.parametrize("n", [1, 8])
def test_parameters_that_number_the_images_of_a_batch_are_refused(n):
    message = (
        "`batch_idx` of Kornia's RandomChannelDropout numbers the images of a batch, so it cannot follow from the key "
        "of an image."
    )
    with says(ValueError, message):
        TwoViews(K.RandomChannelDropout(p=1.0))(images(n), some_keys(n))


def test_parameters_of_a_shape_that_is_random_are_refused():
    rain = K.RandomRain(p=1.0, number_of_drops=(2, 9), drop_height=(2, 3), drop_width=(1, 2))
    with says(ValueError, "`coordinates_factor` of Kornia's RandomRain has another shape for every image."):
        TwoViews(rain)(images(), some_keys())


def test_numbers_drawn_besides_the_parameters_are_refused():
    before = torch.get_rng_state()
    message = "Kornia's _NoisyStage draws random numbers besides its parameters, which cannot follow from the keys."
    for stages in ([_NoisyStage(p=1.0)], [RandomResizedCropFlip(16), _NoisyStage(p=1.0), Solarize()]):
        with says(ValueError, message):
            TwoViews(*stages)(images(), some_keys())
        assert torch.equal(torch.get_rng_state(), before)
    stage = KorniaStage(_NoisyStage(p=1.0))
    with says(ValueError, message):
        stage.replay(images(), stage.draw(some_keys(), images().shape))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_draw_for_a_whole_batch_is_refused():
    with says(ValueError, "`same_on_batch` of RandomErasing must be False: draws are by image, by its key."):
        TwoViews(RandomResizedCropFlip(16), K.RandomErasing(same_on_batch=True))(images(), some_keys())


def test_what_draws_nothing_is_a_stage_although_it_is_the_same_on_the_batch():
    crop, normalize = RandomResizedCropFlip(16), K.Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    plain, normalised = TwoViews(crop)(images(), some_keys()), TwoViews(crop, normalize)(images(), some_keys())
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.3, 0.4]])[:, :, None, None]
    assert_close(normalised, tuple((view - mean) / std for view in plain))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ImageSequential(K.RandomErasing()), "ImageSequential"),
        (lambda: K.AugmentationSequential(K.RandomErasing()), "AugmentationSequential"),
        (lambda: K.PatchSequential(K.RandomErasing(), patchwise_apply=False), "PatchSequential"),
        (lambda: K.auto.RandAugment(1, 5), "RandAugment"),
        (lambda: K.RandomMixUpV2(), "RandomMixUpV2"),
        (lambda: K.RandomRotation3D(5.0), "RandomRotation3D"),
    ],
    ids=str,
)
def test_kornias_augmentations_of_more_than_single_images_are_refused(make, name):
    message = (
        f"{name} is no stage: of Kornia's augmentations, those of single images can be (subclasses of "
        "AugmentationBase2D); pass the members of a container one by one."
    )
    with says(TypeError, message):
        TwoViews(make())


@pytest.mark.parametrize(
    ("wrong", "name"), [(nn.Identity(), "Identity"), (K.RandomMixUpV2(), "RandomMixUpV2"), (3, "int")], ids=str
)
def test_a_kornia_stage_must_hold_an_augmentation_of_kornias(wrong, name):
    with says(TypeError, f"`module` must be an augmentation of Kornia's, got {name}."):
        KorniaStage(wrong)


def test_foreign_stages_refuse_keys_that_are_not_on_the_cpu():
    keys = some_keys().to("meta")
    with says(ValueError, "`keys` must be on the CPU, where Kornia's RandomErasing draws, got meta."):
        KorniaStage(K.RandomErasing()).draw(keys, images().shape)


@pytest.mark.parametrize(("stage", "name"), [(K.RandomErasing(), "RandomErasing"), (nn.Identity(), "Identity")])
def test_foreign_stages_refuse_images_of_several_sizes(stage, name):
    with says(ValueError, f"images of several sizes must be cropped first, got {name}."):
        TwoViews(stage)([images()[0], images()[1, :, :9]], some_keys(2))
