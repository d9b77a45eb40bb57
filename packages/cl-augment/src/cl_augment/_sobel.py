"""Edges instead of colours."""

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor
from torch.nn import functional

from cl_augment._images import check_probability
from cl_augment._stage import Params, Stage, change_chosen

_FLOOR = 1e-6  # under the root, as Kornia has it: a finite slope where nothing changes


def sobel(images: Tensor) -> Tensor:
    """Length of the gradient of each channel, by Sobel's filters / 8, borders repeated: shape of `images`."""
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    smooth = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    along_x = smooth[..., 2:] - smooth[..., :-2]
    slope = padded[:, :, 2:] - padded[:, :, :-2]
    along_y = slope[..., :-2] + 2 * slope[..., 1:-1] + slope[..., 2:]
    return torch.sqrt((along_x / 8) ** 2 + (along_y / 8) ** 2 + _FLOOR)


class Sobel(Stage, IntensityAugmentationBase2D):
    """Replace an image by the strength of its edges, with probability `p`.

    An alternative to colour distortion in the paper's ablation of augmentations (arXiv:2002.05709, Fig. 4 and 5); it
    is not in the authors' code, so the normalisation is Kornia's `sobel`'s. Values lie in [0.001, 0.56].

    Args:
        p: Probability, in [0, 1].

    Shape:
        images (n, c, h, w) float in [0, 1], keys (n,) -> same shape.

    Raises:
        ValueError: `p` is out of its range.
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)
        check_probability(p)

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Filter the chosen images."""
        return change_chosen(images, params, lambda part, rows: sobel(part), inplace=inplace)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}"
