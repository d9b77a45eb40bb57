"""What the methods that compare two views of an image share: how the views are made."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from cl_augment import TwoViewAugment, sample_keys
from torch import Tensor, nn

from cl_train._method import Method


class TwoViewMethod(Method):
    """A method whose views are pairs, made by `cl_augment`. Abstract.

    Args:
        encoder: images (n, c, h, w) -> features (n, feature_dim), with an attribute `feature_dim`.
        augment: `(images, keys) -> two views`.
    """

    def __init__(self, encoder: nn.Module, augment: TwoViewAugment) -> None:
        super().__init__()
        self.encoder, self.augment = encoder, augment

    def keys(self, ids: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Keys of the views, by `cl_augment.sample_keys`."""
        return sample_keys(ids, seed=seed, epoch=epoch)

    @property
    def cut(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Both crops of images (n, c, h, w)."""
        return self.augment.cut

    def views(self, images: Tensor | tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
        """First views, then second ones: (2n, c, size, size)."""
        return _views(self.augment, images, keys)

    def compiled_views(self, device: torch.device) -> Callable[[Any, Tensor], Tensor]:
        """On a CPU the augmentation is compiled for chunks that fit the cache, which is quicker there."""
        if device.type != "cpu":
            return super().compiled_views(device)
        augment = deepcopy(self.augment)
        augment.compile()
        return partial(_views, augment)


def online_probe(encoder: nn.Module, num_classes: int) -> nn.Linear:
    """A linear classifier of an encoder's features that learns beside it, as it begins."""
    width: int = encoder.feature_dim  # type: ignore[assignment]
    probe = nn.Linear(width, num_classes)
    nn.init.normal_(probe.weight, std=0.01)
    nn.init.zeros_(probe.bias)
    return probe


def _views(augment: TwoViewAugment, images: Tensor | tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
    return augment.stacked(images, keys) if isinstance(images, Tensor) else torch.cat(augment.finish(images, keys))
