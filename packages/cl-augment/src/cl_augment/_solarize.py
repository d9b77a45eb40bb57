"""Random solarisation."""

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from cl_augment._images import check_probability
from cl_augment._stage import Params, Stage, change_chosen


class Solarize(Stage, IntensityAugmentationBase2D):
    """Invert all values of an image from `threshold` on, x -> 1 - x, with probability `p`.

    A value equal to the threshold is inverted, as in torchvision and in BYOL's code (Grill et al., arXiv:2006.07733,
    App. B, where the second view is solarised with probability 0.2).

    Args:
        p: Probability, in [0, 1].
        threshold: Least value that is inverted, in [0, 1].

    Shape:
        images (n, c, h, w) float in [0, 1], keys (n,) -> same shape.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, p: float = 0.2, *, threshold: float = 0.5) -> None:
        super().__init__(p=p)
        check_probability(p)
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1], got {threshold}.")
        self.threshold = threshold

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Solarise the chosen images."""

        def solarise(part: Tensor, rows: Tensor | None) -> Tensor:
            return torch.where(part >= self.threshold, 1 - part, part)

        return change_chosen(images, params, solarise, inplace=inplace)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}, threshold={self.threshold}"
