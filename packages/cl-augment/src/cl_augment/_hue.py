"""Turning the hue of RGB images."""

from collections.abc import Sequence

import torch
from torch import Tensor

_CYAN, _MAGENTA, _YELLOW = 1 / 2, 5 / 6, 1 / 6  # where on the circle red, green and blue are least


def shift_hue(planes: Sequence[Tensor], shift: Tensor) -> list[Tensor]:
    """Turn the hue of each pixel, keeping value and chroma: torchvision's `adjust_hue` without the detour over HSV.

    With v the greatest channel and c = v - the least, the hue is at a distance of 1/3 + (g + b - r - v) / (6 c) turns
    from red, towards green where g >= b and towards blue elsewhere. With q the hue plus the shift, a channel becomes
    v + c - 6 c clip(d, 1/6, 1/3), where d = ||q - q0| - 1/2| and q0 is where that channel is least: half a turn from
    q0 its chroma is whole, at q0 it is gone.

    Args:
        planes: Red, green and blue, float in [0, 1], each (n, h, w).
        shift: In turns, in [-1, 1], shape (n, 1, 1).

    Returns:
        Red, green and blue, new, in [0, 1].
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sixfold = 6 * chroma
    # without chroma the numerator is 0 as well, and any hue will do
    hue = (green + blue).sub_(red).sub_(value).div_(sixfold.clamp(min=torch.finfo(red.dtype).tiny))
    hue = hue.add_(1 / 3).copysign_(green - blue)
    # 1, as frac of a negative number is negative; a new tensor, as the gradient of copysign needs its result
    hue = hue.add(1 + shift).frac_()
    most = value.add_(chroma)
    turned = []
    for least in (_CYAN, _MAGENTA, _YELLOW):
        share = (hue - least).abs_().sub_(1 / 2).abs_().clamp_(1 / 6, 1 / 3)
        turned.append(torch.addcmul(most, sixfold, share, value=-1).clamp_(0, 1))  # rounding may pass both
    return turned
