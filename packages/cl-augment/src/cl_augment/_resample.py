"""Crop, resize and flip of a whole batch: weighted sums of columns, then of rows.

A crop-and-resize is linear and separable. Each column of the output is a weighted sum of a few columns of the image,
each row of that a weighted sum of a few of its rows; which ones and how much of each are small tables, one for each
image. So any box, any filter and antialiasing cost the same two `embedding_bag`s, with no loop over images, no product
with mostly zeros, and no sum that depends on what else is in the batch.
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Interpolation = Literal["bilinear", "bicubic"]


class Boxes(NamedTuple):
    """One box for each image, in whole pixels: int64, each (n,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def check_boxes(boxes: Boxes, images: Tensor) -> None:
    """Raise ValueError unless there is a box within each image, where that is known without waiting for a device."""
    n, _, height, width = images.shape
    if len(boxes.top) != n:
        raise ValueError(f"`params` must have a box for each of {n} images, got {len(boxes.top)}.")
    if torch.compiler.is_compiling() or boxes.top.device.type != "cpu":
        return
    ends = torch.stack([height - boxes.top - boxes.height, width - boxes.left - boxes.width])
    if bool((torch.cat([boxes.top, boxes.left, boxes.height - 1, boxes.width - 1, ends.flatten()]) < 0).any()):
        raise ValueError(f"`params` must have boxes of at least a pixel within {height} x {width} pixels.")


def _cubic(t: Tensor, a: float) -> Tensor:
    """Keys' cubic kernel, 1981, Eq. 4 for a = -0.5, at the distances `t`."""
    t = t.abs()
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def axis_taps(
    start: Tensor,
    length: Tensor,
    *,
    mirror: Tensor | None,
    size: int,
    extent: int,
    interpolation: Interpolation,
    antialias: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One axis: which pixels make each of the `size` pixels of the output, and with what weights.

    With antialiasing the filter widens with the box, pixels beyond the box have no weight and the rest sums to 1, as
    in PIL; without, it has the width of a pixel and the box's border is repeated, as in `interpolate`. Bicubic means
    a = -0.5 in the first case and -0.75 in the second, as there.

    Args:
        start: First pixel of each box, int64, shape (n,).
        length: Pixels of each box, int64, in [1, extent], shape (n,).
        mirror: Which boxes to reverse, bool, shape (n,); None for none.
        size: Pixels of the output.
        extent: Greatest length there may be.
        interpolation: Kernel of the filter.
        antialias: Whether to widen the filter with the box.
        dtype: Of the weights.

    Returns:
        Indices, int64, and weights, each (n, size, taps).
    """
    place = torch.arange(size, device=start.device).expand(len(start), size)
    if mirror is not None:
        place = torch.where(mirror[:, None], size - 1 - place, place)
    # The centre of output pixel i is (2 i + 1) length / (2 size): whole numbers keep its fraction exact.
    twice = (2 * place + 1) * length[:, None]
    pixel = torch.div(twice, 2 * size, rounding_mode="floor")
    fraction = (twice - pixel * (2 * size)).to(dtype) / (2 * size)
    reach = 1 if interpolation == "bilinear" else 2
    if antialias:
        stretch = (length.to(dtype) / size).clamp(min=1)[:, None, None]
        taps = math.ceil(2 * reach * max(1.0, extent / size))
    else:
        stretch, taps = torch.ones((), dtype=dtype, device=start.device), 2 * reach
    # The taps are the pixels whose centres lie within reach * stretch of that centre, at both sides.
    first = torch.floor(fraction[:, :, None] - 0.5 - reach * stretch) + 1
    tap = first + torch.arange(taps, device=start.device, dtype=dtype)
    distance = (tap + 0.5 - fraction[:, :, None]) / stretch
    if interpolation == "bilinear":
        weights = (1 - distance.abs()).clamp(min=0)
    else:
        weights = _cubic(distance, -0.5 if antialias else -0.75)
    index = pixel[:, :, None] + tap.long()
    bounds = (length - 1)[:, None, None]
    if antialias:
        weights = weights * ((index >= 0) & (index <= bounds))
        # One after the other: how torch.sum adds depends on how many taps there are, and so on the other images.
        total = weights[:, :, 0]
        for t in range(1, taps):
            total = total + weights[:, :, t]
        weights = weights / total[:, :, None]
    index = torch.minimum(index.clamp(min=0), bounds) + start[:, None, None]
    return index, weights


def mix_rows(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the rows of each plane.

    Args:
        rows: float, shape (planes, r, l).
        index: Rows to add up, int64, shape (n, s, taps); a plane uses the table of its image, planes = n c.
        weights: Their weights, dtype of `rows`, same shape.

    Returns:
        Shape (planes, s, l).
    """
    planes, r, width = rows.shape
    n, s, taps = index.shape
    channels = planes // max(n, 1)
    base = torch.arange(planes, device=rows.device).view(n, channels, 1, 1) * r
    return functional.embedding_bag(
        (index[:, None] + base).view(planes * s, taps),
        rows.reshape(planes * r, width),
        per_sample_weights=weights[:, None].expand(n, channels, s, taps).reshape(planes * s, taps),
        mode="sum",
    ).view(planes, s, width)


def _nothing_around(images: Tensor, boxes: Boxes) -> tuple[Tensor, Boxes]:
    """The images without the rows and columns that no box touches: those need not be converted.

    Only where to look at the boxes is free. It saves a file's image most of its pixels, a batch's few.
    """
    if len(images) == 0 or torch.compiler.is_compiling() or boxes.top.device.type != "cpu":
        return images, boxes
    top, bottom = int(boxes.top.min()), int((boxes.top + boxes.height).max())
    left, right = int(boxes.left.min()), int((boxes.left + boxes.width).max())
    return images[:, :, top:bottom, left:right], boxes._replace(top=boxes.top - top, left=boxes.left - left)


def crop_resize(
    images: Tensor,
    boxes: Boxes,
    *,
    flip: Tensor | None,
    size: int,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """Cut one box out of each image, resize it to `size` x `size` and flip it where asked.

    Equals `torchvision.transforms.functional.resized_crop(..., antialias=antialias)` and `hflip`, box by box, without
    clipping: bicubic filtering can leave [0, 1] by a little.

    Args:
        images: uint8 or float, shape (n, c, h, w).
        boxes: What to keep of each image.
        flip: Which images to mirror, bool, shape (n,); None for no image.
        size: Side of the output in pixels.
        interpolation: Kernel of the filter.
        antialias: Whether the filter widens where a box is larger than the output.

    Returns:
        Shape (n, c, size, size), float32 for uint8 (of which 255 becomes 1), else the dtype of `images`.
    """
    images, boxes = _nothing_around(images, boxes)
    n, c, h, w = images.shape
    # uint8 and the half types are added up in float32
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    boxes = Boxes(*(edge.to(images.device, non_blocking=True) for edge in boxes))
    flip = None if flip is None else flip.to(images.device, non_blocking=True)
    taps = partial(axis_taps, size=size, interpolation=interpolation, antialias=antialias, dtype=dtype)
    x_index, x_weights = taps(boxes.left, boxes.width, mirror=flip, extent=w)
    y_index, y_weights = taps(boxes.top, boxes.height, mirror=None, extent=h)
    if images.dtype == torch.uint8:
        x_weights = x_weights / 255  # instead of a pass over the images
    # Columns first, as rows of the transposed image: one copy converts and transposes.
    columns = torch.empty(n, c, w, h, dtype=dtype, device=images.device).copy_(images.transpose(2, 3))
    narrow = mix_rows(columns.view(n * c, w, h), x_index, x_weights)
    del columns
    rows = narrow.transpose(1, 2).contiguous()
    del narrow
    views = mix_rows(rows, y_index, y_weights).view(n, c, size, size)
    return views if images.dtype == torch.uint8 else views.to(images.dtype)
