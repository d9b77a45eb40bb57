"""Random resized crop and flip, for training."""

import math
from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from cl_augment._images import check_probability, check_size
from cl_augment._keys import uniform
from cl_augment._resample import Boxes, Interpolation, check_boxes, crop_resize
from cl_augment._stage import Params, Stage, whole_images

_TRIES = 10


def random_boxes(u: Tensor, sizes: Tensor, *, scale: tuple[float, float], ratio: tuple[float, float]) -> Boxes:
    """Boxes by torchvision's law: area uniform in `scale`, log aspect uniform in `ratio`, ten tries, else the centre.

    Args:
        u: Uniform numbers, shape (n, 22): ten areas, ten aspects, two offsets.
        sizes: Height and width of each image in pixels, int64, shape (n, 2).
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width / height.

    Returns:
        A box in each image.
    """
    height, width = sizes.to(u.dtype).unbind(1)
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    w = torch.round(torch.sqrt(area * aspect))
    h = torch.round(torch.sqrt(area / aspect))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    # When no try fits: the largest centred box whose aspect lies in `ratio`.
    image_ratio = width / height
    whole_w = torch.where(image_ratio > ratio[1], torch.round(height * ratio[1]), width).clamp(min=1)
    whole_h = torch.where(image_ratio < ratio[0], torch.round(width / ratio[0]), height).clamp(min=1)
    any_fits = fits.any(dim=1)
    w = torch.where(any_fits, w.gather(1, first).squeeze(1), whole_w)
    h = torch.where(any_fits, h.gather(1, first).squeeze(1), whole_h)
    top = torch.where(any_fits, torch.floor(u[:, 2 * _TRIES] * (height - h + 1)), torch.floor((height - h) / 2))
    left = torch.where(any_fits, torch.floor(u[:, 2 * _TRIES + 1] * (width - w + 1)), torch.floor((width - w) / 2))
    return Boxes(top.long(), left.long(), h.long(), w.long())


class RandomResizedCropFlip(Stage, GeometricAugmentationBase2D):
    """A random box of each image, resized to a square and mirrored half of the time, in one sampling.

    The box follows torchvision's `RandomResizedCrop`, the pixels its `resized_crop`, then clipped to [0, 1]. Nothing
    from outside the box enters its border.

    The authors' TensorFlow code draws the height uniformly instead of the area and rejects boxes below 10 % of the
    image: its boxes cover 0.43 of a 32 px image on average, these 0.49. Its second version resizes by the same cubic
    without antialiasing, which differs only where the box is larger than the output; its first version has another
    cubic and another grid.

    Args:
        size: Side of the output in pixels, >= 8.
        scale: Range of the box's share of the image area, within (0, 1]. SimCLR: (0.08, 1), arXiv:2002.05709, App. A.
        ratio: Range of width / height, > 0.
        flip: Probability of mirroring, in [0, 1].
        interpolation: "bilinear" or "bicubic"; the paper's code is bicubic.
        antialias: Whether the filter widens where a box is larger than the output, as PIL's and torchvision's do.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], keys (n,) -> (n, c, size, size), float in [0, 1].

    Raises:
        ValueError: An argument is out of its range.
    """

    reads_uint8 = True
    needs_shape = takes_sizes = True

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        interpolation: Interpolation = "bicubic",
        antialias: bool = True,
    ) -> None:
        super().__init__(p=1.0)
        check_size(size)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` must be an increasing pair within (0, 1], got {scale}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"`ratio` must be an increasing pair above 0, got {ratio}.")
        check_probability(flip, name="flip")
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"`interpolation` must be 'bilinear' or 'bicubic', got {interpolation!r}.")
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip
        self.interpolation: Interpolation = interpolation
        self.antialias = antialias

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """Boxes "top", "left", "height", "width" in pixels and whether to "flip"."""
        u = uniform(keys, 2 * _TRIES + 3)
        sizes = whole_images(keys, shape) if sizes is None else sizes
        boxes = random_boxes(u, sizes, scale=self.scale, ratio=self.ratio)
        return {**boxes._asdict(), "flip": u[:, -1] < self.flip}

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Crop, resize and flip each image as drawn.

        Raises:
            ValueError: A box is not within its image; on the CPU only, as the host would wait for a GPU.
        """
        boxes = Boxes(*(params[name] for name in Boxes._fields))
        check_boxes(boxes, images)
        views = crop_resize(
            images,
            boxes,
            flip=params["flip"],
            size=self.size,
            interpolation=self.interpolation,
            antialias=self.antialias,
        )
        # bilinear is a weighted mean and stays within [0, 1] up to rounding, which the clamp removes as well
        return views.clamp_(0, 1)

    def shape_after(self, shape: torch.Size) -> torch.Size:
        """(n, c, size, size)."""
        return torch.Size([shape[0], shape[1], self.size, self.size])

    def compute_transformation(self, input: Tensor, params: Params, flags: dict[str, Any]) -> Tensor:
        """Kornia's: matrices from pixels of the image to pixels of the view, (n, 3, 3), for boxes and keypoints."""
        top, left, height, width = (params[name].to(input) for name in Boxes._fields)
        x_scale, y_scale = self.size / width, self.size / height
        # pixel centres: x + 1/2 within the box is (x' + 1/2) of the view
        x_shift, y_shift = x_scale * (0.5 - left) - 0.5, y_scale * (0.5 - top) - 0.5
        mirror = params["flip"].to(input.device)
        x_scale, x_shift = (
            torch.where(mirror, -x_scale, x_scale),
            torch.where(mirror, self.size - 1 - x_shift, x_shift),
        )
        zero, one = torch.zeros_like(x_scale), torch.ones_like(x_scale)
        rows = [x_scale, zero, x_shift, zero, y_scale, y_shift, zero, zero, one]
        return torch.stack(rows, dim=1).view(-1, 3, 3)

    def apply_transform_mask(
        self, input: Tensor, params: Params, flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Kornia's: masks (n, c, h, w) are cropped alike, by the nearest pixel."""
        place = torch.arange(self.size, device=input.device)
        columns = torch.where(params["flip"].to(input.device)[:, None], self.size - 1 - place, place)
        top, left, height, width = (params[name].to(input.device)[:, None] for name in Boxes._fields)
        y = top + torch.div((2 * place + 1) * height, 2 * self.size, rounding_mode="floor")
        x = left + torch.div((2 * columns + 1) * width, 2 * self.size, rounding_mode="floor")
        image = torch.arange(len(input), device=input.device)
        return input[image[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"{self.size}, scale={self.scale}, ratio={self.ratio}, flip={self.flip}, "
            f"interpolation={self.interpolation!r}, antialias={self.antialias}"
        )
