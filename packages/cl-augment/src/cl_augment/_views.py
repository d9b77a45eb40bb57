"""Stages in a row make a view; two views make what a contrastive method compares."""

import torch
from torch import Tensor, nn

from cl_augment._images import as_float
from cl_augment._keys import fold_in, random_keys


class TwoViewAugment(nn.Module):
    """Two random views of each image: what every preset is. Abstract; `TwoViews` takes stages of your own.

    The first stage of a view fixes the size (a crop, a warp), the others keep it. `cut` and `finish` run these two
    parts one by one, because images of unequal sizes must be cut one at a time, in the workers of a loader, before
    they can be stacked. Calling the module is one after the other.

    Stage s of view v draws from `fold_in(fold_in(keys, v), s)`, so a stage that is added or swapped leaves the draws
    of those before it.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device; keys (n,) from `sample_keys` -> two of
        (n, c, size, size), float in [0, 1]. Without keys, fresh ones are drawn from `generator` or, without that
        too, from the device's global generator.

    Raises:
        ValueError: On call, keys of another length than the images.
    """

    def __init__(self, view_a: list[nn.Module], view_b: list[nn.Module]) -> None:
        super().__init__()
        self.view_a, self.view_b = nn.ModuleList(view_a), nn.ModuleList(view_b)

    def forward(
        self, images: Tensor, keys: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two views of each image."""
        if keys is None:
            keys = random_keys(len(images), device=images.device, generator=generator)
        return self.finish(self.cut(images, keys), keys)

    def cut(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The first stage of both views: images (n, c, h, w) -> two of (n, c, size, size)."""
        if keys.shape != images.shape[:1]:
            raise ValueError(f"`keys` must have shape ({len(images)},), one for each image, got {tuple(keys.shape)}.")
        images = as_float(images)
        key_a, key_b = fold_in(keys, 0), fold_in(keys, 1)
        return self.view_a[0](images, fold_in(key_a, 0)), self.view_b[0](images, fold_in(key_b, 0))

    def finish(self, cuts: tuple[Tensor, Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
        """The other stages of both views, shapes unchanged."""
        view_a, view_b = cuts
        for place, (stage_a, stage_b) in enumerate(zip(self.view_a, self.view_b, strict=True)):
            if place > 0:
                view_a = stage_a(view_a, fold_in(fold_in(keys, 0), place))
                view_b = stage_b(view_b, fold_in(fold_in(keys, 1), place))
        return view_a, view_b


class TwoViews(TwoViewAugment):
    """Two views by stages of your own, the same for both.

    Args:
        stages: Modules called as `stage(images, keys)`, at least one; the first sets the size.

    Shape:
        As of every augmentation: images (n, c, h, w), keys (n,) or None -> two of (n, c, size, size).

    Raises:
        ValueError: There are no stages.
    """

    def __init__(self, *stages: nn.Module) -> None:
        if not stages:
            raise ValueError("`stages` must hold at least one stage, got none.")
        super().__init__(list(stages), list(stages))
