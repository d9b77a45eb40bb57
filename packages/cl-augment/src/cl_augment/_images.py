"""What every stage accepts: batches of images, uint8 or float, and the checks of that."""

import torch
from torch import Tensor


def check_size(size: int) -> None:
    """Raise unless `size` is a number of pixels."""
    if size < 1:
        raise ValueError(f"`size` must be at least 1 pixel, got {size}.")


def as_float(images: Tensor) -> Tensor:
    """Images as floating point numbers in [0, 1].

    Args:
        images: uint8 in 0..255, or float in [0, 1] (not checked: that would cost a host sync), shape (n, c, h, w).

    Returns:
        float32 for uint8, else the dtype of `images`, same shape.

    Raises:
        TypeError: Another dtype.
        ValueError: Another number of dimensions.
    """
    if images.ndim != 4:
        raise ValueError(f"`images` must have shape (n, c, h, w), got {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if images.is_floating_point():
        return images
    raise TypeError(f"`images` must be uint8 in 0..255 or float in [0, 1], got {images.dtype}.")
