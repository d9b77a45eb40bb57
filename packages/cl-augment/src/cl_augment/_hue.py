"""Turning the hue of RGB images."""

import torch
from torch import Tensor


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each pixel, keeping value and chroma: torchvision's `adjust_hue` without the detour over HSV.

    With v the greatest channel and c = v - the least, the hue is at a distance of 1/3 + (g + b - r - v) / (6 c) turns
    from red, towards green where g >= b and towards blue elsewhere. With q the hue plus the shift, a channel becomes
    v - c clip(2 - 6 d, 0, 1), where d <= 1/2 is how far q lies on the circle from where that channel is least: 1/2
    (cyan) for red, 5/6 (magenta) for green, 1/6 (yellow) for blue.

    Args:
        images: float in [0, 1], shape (n, 3, h, w).
        shift: In turns, in [-1, 1], shape (n,).

    Returns:
        Shape of `images`, in [0, 1].
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    sixfold = (value - images.amin(1)).mul_(6)
    # without chroma the numerator is 0 as well, and any hue will do
    chroma = sixfold.clamp(min=torch.finfo(images.dtype).tiny)
    hue = (green + blue).sub_(red).sub_(value).div_(chroma).add_(1 / 3).copysign_(green - blue)
    hue = hue.add_(1 + shift[:, None, None]).frac_()  # 1, as frac of a negative number would be negative
    least = torch.arange(3, 9, 2, dtype=images.dtype, device=images.device).remainder_(6).div_(6)[:, None, None]
    # the distance d on the circle is 1/2 - ||q - q0| - 1/2|
    share = (hue[:, None] - least).abs_().sub_(1 / 2).abs_().sub_(1 / 6).clamp_(0, 1 / 6)
    return torch.addcmul(value[:, None], sixfold[:, None], share, value=-1).clamp_(min=0)  # rounding may pass 0
