"""The augmentations of the papers, by name."""

import torch
from torch import Tensor, nn

from cl_augment._blur import GaussianBlur
from cl_augment._colour import ColorJitter, RandomGrayscale
from cl_augment._crop import RandomResizedCropFlip
from cl_augment._keys import random_keys
from cl_augment._views import TwoViewAugment


class SimCLRAugment(TwoViewAugment):
    """SimCLR's two views: random resized crop and flip, colour jitter, grey images, blur.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709,
    App. A; the order is the authors' code's. No mean and standard deviation are subtracted: the network sees
    [0, 1], as theirs does.

    Args:
        size: Side of the views in pixels, >= 1.
        strength: Strength of the colour jitter, in [0, 2.5]: 1 on ImageNet, 0.5 on CIFAR-10.
        blur: Whether to blur half of the views; None: above 32 px only, as in the paper.

    Shape:
        images (n, 3 or 1, h, w), uint8 or float in [0, 1], any device; keys (n,) or None -> two views of
        (n, 3 or 1, size, size), float in [0, 1].

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, size: int, *, strength: float = 1.0, blur: bool | None = None) -> None:
        if blur is None:
            blur = size > 32
        stages = [RandomResizedCropFlip(size), ColorJitter(strength), RandomGrayscale()]
        super().__init__(stages + [GaussianBlur()] * blur, stages + [GaussianBlur()] * blur)


class LinearEvalAugment(nn.Module):
    """What a linear classifier is trained on: random resized crop and flip, one view.

    arXiv:2002.05709, App. B.5.

    Args:
        size: Side of the output in pixels, >= 1.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device; keys (n,) or None -> (n, c, size, size), float in
        [0, 1].

    Raises:
        ValueError: `size` is out of its range.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.crop = RandomResizedCropFlip(size)

    def forward(
        self, images: Tensor, keys: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """One view of each image."""
        if keys is None:
            keys = random_keys(len(images), device=images.device, generator=generator)
        return self.crop(images, keys)
