"""Turning the hue of RGB images."""

from collections.abc import Sequence

import torch
from torch import Tensor

_CYAN, _MAGENTA, _YELLOW = 1 / 2, 5 / 6, 1 / 6  # where on the circle red, green and blue are least


def shift_hue(planes: Sequence[Tensor], shift: Tensor) -> list[Tensor]:
    """Turn the hue of each pixel, keeping value and chroma: torchvision's `adjust_hue` without the detour over HSV.

    With v the greatest channel and c = v - the least, the hue is at a distance of 1/3 + (g + b - r - v) / (6 c) turns
    from red, towards green where g >= b and towards blue elsewhere. With q the hue plus the shift, a channel becomes
    v - c clip(2 - 6 d, 0, 1), where d <= 1/2 is how far q lies on the circle from where that channel is least.

    Args:
        planes: Red, green and blue, float in [0, 1], each (n, h, w).
        shift: In turns, in [-1, 1], shape (n, 1, 1).

    Returns:
        Red, green and blue, new, in [0, 1].
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    sixfold = (value - torch.minimum(torch.minimum(red, green), blue)).mul_(6)
    # without chroma the numerator is 0 as well, and any hue will do
    chroma = sixfold.clamp(min=torch.finfo(red.dtype).tiny)
    hue = (green + blue).sub_(red).sub_(value).div_(chroma).add_(1 / 3).copysign_(green - blue)
    hue = hue.add_(1 + shift).frac_()  # 1, as frac of a negative number would be negative
    turned = []
    for least in (_CYAN, _MAGENTA, _YELLOW):
        # the distance d on the circle is 1/2 - ||q - least| - 1/2|
        share = (hue - least).abs_().sub_(1 / 2).abs_().sub_(1 / 6).clamp_(0, 1 / 6)
        turned.append(torch.addcmul(value, sixfold, share, value=-1).clamp_(min=0))  # rounding may pass 0
    return turned
