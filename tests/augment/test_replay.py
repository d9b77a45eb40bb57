"""What replays refuse, whom views belong to, and that gradients pass through them."""

import re

import kornia.augmentation as K
import pytest
import torch
from cl_augment import (
    BYOLAugment,
    ColorJitter,
    EvalTransform,
    GaussianBlur,
    LinearEvalAugment,
    RandomGrayscale,
    RandomResizedCropFlip,
    RandomStroke,
    RandomWarp,
    SimCLRAugment,
    Sobel,
    Solarize,
    TwoViews,
    sample_keys,
)
from torch import Tensor, nn
from torch.testing import assert_close


def images(n: int = 6, *, size: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def some_keys(n: int = 6) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def says(kind: type[Exception], message: str):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


# What is replayed must fit


@pytest.mark.parametrize("n", [3, 12])
def test_params_of_another_number_of_images_are_refused(n):
    augment = LinearEvalAugment(16)
    params = augment.draw(images(), some_keys())
    message = f"`params` must have a row for each of {n} images, got 'top' of RandomResizedCropFlip of shape (6,)."
    with says(ValueError, message):
        augment.replay(images(12)[:n], params)


def test_params_of_another_augmentation_are_refused():
    params = SimCLRAugment(16).draw(images(), some_keys())
    with says(ValueError, "`params` must have a dictionary for each stage of each view, [4, 5], got [3, 3]."):
        BYOLAugment(16).replay(images(), params)


@pytest.mark.parametrize(
    "change", [{"top": -1}, {"left": -1}, {"height": 0}, {"width": 0}, {"top": 20}, {"left": 24}], ids=str
)
def test_a_box_beyond_its_image_is_refused(change):
    augment = LinearEvalAugment(16)
    params = augment.draw(images(), some_keys())
    box = {"top": 0, "left": 0, "height": 5, "width": 5} | change
    for name, value in box.items():
        params[0][0][name][2] = value
    with says(ValueError, "`params` must have boxes of at least a pixel within 24 x 24 pixels."):
        augment.replay(images(), params)


def test_a_stage_says_that_there_is_not_a_box_for_each_image():
    stage = RandomResizedCropFlip(16)
    with says(ValueError, "`params` must have a box for each of 3 images, got 6."):
        stage.replay(images(3), stage.draw(some_keys(), images().shape))


@pytest.mark.parametrize(
    "stage", [ColorJitter(hue=0), GaussianBlur(), RandomGrayscale(), Sobel(), Solarize()], ids=repr
)
def test_images_of_several_sizes_are_cropped_before_anything_else(stage):
    batch = [torch.rand(3, 20, 20), torch.rand(3, 40, 60)]
    message = f"images of several sizes must be cropped first, got {type(stage).__name__}."
    with says(ValueError, message):
        TwoViews(stage, RandomResizedCropFlip(16))(batch, some_keys(2))


# Whom the results belong to


@pytest.mark.parametrize("transform", [EvalTransform(24), GaussianBlur(1.0), RandomGrayscale(0.0)], ids=repr)
def test_a_transform_with_nothing_to_do_returns_a_copy(transform):
    batch = images(size=19 if isinstance(transform, GaussianBlur) else 24)
    result = transform(batch, some_keys())
    assert_close(result, batch, rtol=0, atol=0)
    assert result.data_ptr() != batch.data_ptr()


def test_a_module_that_overwrites_its_argument_harms_neither_the_images_nor_the_other_view():
    class Halve(nn.Module):
        def forward(self, batch: Tensor, keys: Tensor) -> Tensor:
            return batch.mul_(0.5)

    batch = images()
    view_a, view_b = TwoViews(Halve())(batch, some_keys())
    assert_close(batch, images(), rtol=0, atol=0)
    assert_close(view_a, images() / 2, rtol=0, atol=0)
    assert_close(view_b, view_a, rtol=0, atol=0)


def test_a_module_is_called_once_for_each_view():
    class Counts(nn.Module):
        calls = 0

        def forward(self, batch: Tensor, keys: Tensor) -> Tensor:
            self.calls += 1
            return batch

    module = Counts()
    TwoViews(RandomResizedCropFlip(16), module, ColorJitter())(images(), some_keys())
    assert module.calls == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cut_and_finish_do_not_round_half_types_on_the_way(dtype):
    augment, batch = SimCLRAugment(16), images().to(dtype)
    views = augment.finish(augment.cut(batch, some_keys()), some_keys())
    assert views[0].dtype == torch.float32
    assert_close(tuple(view.to(dtype) for view in views), augment(batch, some_keys()), rtol=0, atol=0)


# Kornia's same_on_batch


@pytest.mark.parametrize("stage", [RandomResizedCropFlip(16), ColorJitter(), RandomGrayscale(0.5)], ids=repr)
def test_kornias_containers_can_ask_for_one_draw_for_the_whole_batch(stage):
    same = images(1).expand(8, -1, -1, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = [K.AugmentationSequential(stage, same_on_batch=True)(same) for _ in range(8)]
    assert all(len(views.unique(dim=0)) == 1 for views in found)
    assert len(torch.cat(found).unique(dim=0)) > 1


# Gradients


@pytest.mark.parametrize(
    "stage",
    [
        RandomResizedCropFlip(8),
        ColorJitter(p=1.0),
        RandomGrayscale(0.5),
        GaussianBlur(1.0),
        Solarize(0.5),
        Sobel(),
        RandomWarp(8),
        RandomStroke(),
    ],
    ids=repr,
)
def test_gradients_are_those_of_finite_differences(stage):
    size = 20 if isinstance(stage, GaussianBlur) else 9
    batch = images(1, size=size, dtype=torch.float64).mul_(0.5).add_(0.2)[..., : size - 1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stage(x, some_keys(1)), batch, fast_mode=True)


def test_gradients_of_grey_images_are_finite():
    batch = torch.full((2, 3, 24, 24), 0.5, requires_grad=True)
    view_a, view_b = SimCLRAugment(24, blur=True)(batch, some_keys(2))
    (view_a.sum() + view_b.sum()).backward()
    assert batch.grad.isfinite().all()
