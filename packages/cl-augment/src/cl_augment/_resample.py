"""Crop, resize and flip of a whole batch as two matrix products per image.

A crop-and-resize is linear and separable: output = R_y @ image @ R_x^T, with one banded matrix per axis and image.
So any box, any filter and antialiasing cost the same two batched products, with no loop over images. A flip
reverses the rows of R_x.
"""

from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


def _triangle(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def _keys_cubic(t: Tensor) -> Tensor:
    # Keys' kernel with a = -0.5, which torch and PIL use when they antialias.
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def _axis_weights(start: Tensor, length: Tensor, *, size: int, extent: int, interpolation: Interpolation) -> Tensor:
    """One axis: weights (n, size, extent) that take `extent` pixels to the `size` of the crop [start, start + length).

    Pixels outside the crop have weight zero and the rest is normalised, so nothing leaks in from beyond the border.
    """
    scale = length / size
    # A filter wider than one input pixel is the antialiasing; below one pixel plain interpolation remains.
    width = scale.clamp(min=1)
    output = torch.arange(size, device=start.device, dtype=start.dtype)
    pixel = torch.arange(extent, device=start.device, dtype=start.dtype)
    centre = start[:, None] + (output + 0.5) * scale[:, None] - 0.5
    distance = (pixel - centre[:, :, None]) / width[:, None, None]
    weights = _triangle(distance) if interpolation == "bilinear" else _keys_cubic(distance)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def crop_resize(
    images: Tensor,
    *,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flip: Tensor | None,
    size: int,
    interpolation: Interpolation,
) -> Tensor:
    """Cut one box out of each image, resize it to `size` x `size` with antialiasing and flip it where asked.

    Equals `torchvision.transforms.functional.resized_crop(..., antialias=True)` and `hflip`, box by box, without
    clipping: bicubic filtering can leave [0, 1] by a little.

    Args:
        images: float, shape (n, c, h, w).
        top: Upper edge of each box in pixels, a whole number stored as float, shape (n,).
        left: Left edge, likewise.
        height: Height of each box in pixels, >= 1, likewise.
        width: Width, likewise.
        flip: Which images to mirror, bool, shape (n,); None for no image.
        size: Side of the output in pixels.
        interpolation: Kernel of the filter.

    Returns:
        Shape (n, c, size, size), dtype of `images`.
    """
    n, c, h, w = images.shape
    rows = _axis_weights(top, height, size=size, extent=h, interpolation=interpolation).to(images.dtype)
    columns = _axis_weights(left, width, size=size, extent=w, interpolation=interpolation).to(images.dtype)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    # (n, size, h) @ (n, h, c * w) first: it shrinks the image before the second product.
    shrunk = torch.bmm(rows, images.permute(0, 2, 1, 3).reshape(n, h, c * w))
    views = torch.bmm(shrunk.reshape(n, size * c, w), columns.transpose(1, 2))
    return views.reshape(n, size, c, size).transpose(1, 2).contiguous()
