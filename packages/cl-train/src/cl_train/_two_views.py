"""What the methods that compare two views of an image share: how the views are made."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from cl_augment import TwoViewAugment, sample_keys
from torch import Tensor, nn
from torch.nn import functional

from cl_train._errors import InputError
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


def probe_loss(
    logits: Tensor, labels: Tensor | None, *, views: int, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of a probe over labelled images, and its share of hits; 0 without any.

    Args:
        logits: Of all first views, then of all second ones, if there are two: (views * n, classes).
        labels: Classes, -1 for none, (n,); or classes and domains, (n, 2), of which the first count.
        views: 1 or 2.
        count: What sums over the rows are divided by; None: this process's labelled rows.

    Raises:
        InputError: There are no labels.
    """
    if labels is None:
        raise InputError("`num_classes` asks for a probe, but the data set has no labels.")
    classes = (labels[:, 0] if labels.ndim == 2 else labels).repeat(views)
    if count is None:
        count = (classes >= 0).sum().clamp_min(1)  # the mean over no image would be no number
    loss = functional.cross_entropy(logits, classes, ignore_index=-1, reduction="sum") / count
    return loss, (logits.detach().argmax(1) == classes).sum() / count


def _views(augment: TwoViewAugment, images: Tensor | tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
    return augment.stacked(images, keys) if isinstance(images, Tensor) else torch.cat(augment.finish(images, keys))
