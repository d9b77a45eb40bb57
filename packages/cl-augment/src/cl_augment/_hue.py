"""Turning the hue of RGB images."""

from collections.abc import Sequence

import torch
from torch import Tensor

_CYAN, _MAGENTA, _YELLOW = 3, 5, 1  # in sixths of the circle: where red, green and blue are least


def shift_hue(planes: Sequence[Tensor], shift: Tensor) -> list[Tensor]:
    """Turn the hue of each pixel, keeping value and chroma: torchvision's `adjust_hue` without the detour over HSV.

    With v the greatest channel and c = v - the least, the hue is at a distance of 2 + (g + b - r - v) / c sixths of the
    circle from red, towards green where g >= b and towards blue elsewhere. With q the hue plus the shift, a channel
    becomes v + c - c clip(d, 1, 2), where d = ||q - q0| - 3| and q0 is where that channel is least: at a distance of 3
    from q0 its chroma is whole, at 0 it is gone.

    Args:
        planes: Red, green and blue, float in [0, 1], each (n, h, w).
        shift: In turns, in [-1, 1], shape (n, 1, 1).

    Returns:
        Red, green and blue, new, in [0, 1].
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # without chroma the numerator is 0 as well, and any hue will do
    hue = (green + blue).sub_(red).sub_(value).div_(chroma.clamp(min=torch.finfo(red.dtype).tiny))
    hue = hue.add_(2).copysign_(green - blue)
    hue = hue.add(6 + 6 * shift).fmod_(6)  # 6, as fmod of a negative number is negative; copysign's result is kept
    most = value.add_(chroma)
    turned = []
    for least in (_CYAN, _MAGENTA, _YELLOW):
        share = (hue - least).abs_().sub_(3).abs_().clamp_(1, 2)
        turned.append(torch.addcmul(most, chroma, share, value=-1).clamp_(min=0))  # rounding may pass 0
    return turned
