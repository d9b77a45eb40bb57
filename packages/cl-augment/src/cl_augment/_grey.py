"""Brightness of a pixel, and random grey images."""

from collections.abc import Sequence

from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from cl_augment._images import check_probability
from cl_augment._stage import Params, Stage, change_chosen

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green, blue; ITU-R BT.601


def luma(planes: Sequence[Tensor]) -> Tensor:
    """Luma of red, green and blue, each (n, h, w), or the mean of any other number of channels: (n, h, w), new."""
    if len(planes) == 3:
        red, green, blue = planes
        return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    total = planes[0].clone()
    for plane in planes[1:]:
        total += plane
    return total.div_(len(planes))


def grey(images: Tensor) -> Tensor:
    """Luma of RGB images, mean of the channels of others: (n, c, h, w) -> (n, 1, h, w)."""
    return luma(images.unbind(1))[:, None]


class RandomGrayscale(Stage, IntensityAugmentationBase2D):
    """Replace an image by its luma, in all channels, with probability `p`.

    Images of other than three channels are replaced by the mean of their channels.

    Args:
        p: Probability, in [0, 1]; SimCLR: 0.2.

    Shape:
        images (n, c, h, w), keys (n,) -> same shape.

    Raises:
        ValueError: `p` is out of its range.
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__(p=p)
        check_probability(p)

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Make the chosen images grey."""
        return change_chosen(images, params, lambda part, rows: grey(part), inplace=inplace)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}"
