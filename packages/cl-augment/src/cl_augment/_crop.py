"""The crops: random resized crop with flip for training, the centre crop for testing."""

import math

import torch
from torch import Tensor, nn

from cl_augment._images import as_float, check_size
from cl_augment._keys import uniform
from cl_augment._resample import Interpolation, crop_resize

_TRIES = 10


def random_boxes(
    u: Tensor, *, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes by torchvision's law: area uniform in `scale`, log aspect uniform in `ratio`, ten tries, else the centre.

    The authors' TensorFlow code draws the height uniformly instead and rejects boxes below 10 % of the image; its
    boxes cover 0.43 of a 32 px image on average, these 0.49.

    Args:
        u: Uniform numbers, shape (n, 22): ten areas, ten aspects, two offsets.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width / height.

    Returns:
        top, left, height, width in whole pixels, float32, each (n,).
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    w = torch.round(torch.sqrt(area * aspect))
    h = torch.round(torch.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    # When no try fits: the largest centred box whose aspect lies in `ratio`.
    image_ratio = width / height
    whole_w = float(width if image_ratio <= ratio[1] else round(height * ratio[1]))
    whole_h = float(height if image_ratio >= ratio[0] else round(width / ratio[0]))
    any_fits = fits.any(dim=1)
    w = torch.where(any_fits, w.gather(1, first).squeeze(1), whole_w)
    h = torch.where(any_fits, h.gather(1, first).squeeze(1), whole_h)
    top = torch.floor(u[:, 2 * _TRIES] * (height - h + 1))
    left = torch.floor(u[:, 2 * _TRIES + 1] * (width - w + 1))
    top = torch.where(any_fits, top, torch.floor((height - h) / 2))
    left = torch.where(any_fits, left, torch.floor((width - w) / 2))
    return top, left, h, w


class RandomResizedCropFlip(nn.Module):
    """A random box of each image, resized to a square and mirrored half of the time, in one sampling.

    The box follows torchvision's `RandomResizedCrop`, the pixels its `resized_crop` with `antialias=True`, then
    clipped to [0, 1]. The authors' TensorFlow 2 code resizes by the same cubic without antialiasing, which differs only
    where the box is larger than the output; their TensorFlow 1 code has another cubic and another grid.

    Args:
        size: Side of the output in pixels, >= 1.
        scale: Range of the box's share of the image area, within (0, 1]. SimCLR: (0.08, 1), arXiv:2002.05709, App. A.
        ratio: Range of width / height, > 0.
        flip: Probability of mirroring, in [0, 1].
        interpolation: "bilinear" or "bicubic"; the paper's code is bicubic.

    Shape:
        images (n, c, h, w), keys (n,) -> (n, c, size, size), float in [0, 1].

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        check_size(size)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` must be an increasing pair within (0, 1], got {scale}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"`ratio` must be an increasing pair above 0, got {ratio}.")
        if not 0 <= flip <= 1:
            raise ValueError(f"`flip` is a probability in [0, 1], got {flip}.")
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"`interpolation` must be 'bilinear' or 'bicubic', got {interpolation!r}.")
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip
        self.interpolation: Interpolation = interpolation

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Crop, resize and flip each image by its key."""
        images = as_float(images)
        u = uniform(keys, 2 * _TRIES + 3)
        top, left, height, width = random_boxes(
            u, height=images.shape[-2], width=images.shape[-1], scale=self.scale, ratio=self.ratio
        )
        views = crop_resize(
            images,
            top=top,
            left=left,
            height=height,
            width=width,
            flip=u[:, -1] < self.flip,
            size=self.size,
            interpolation=self.interpolation,
        )
        return views.clamp(0, 1)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"{self.size}, scale={self.scale}, ratio={self.ratio}, flip={self.flip}, "
            f"interpolation={self.interpolation!r}"
        )


class EvalTransform(nn.Module):
    """The deterministic transform of the tests: a centred square crop, resized to `size`.

    Above 32 px the square has 0.875 of the shorter side, as in the authors' code (224 of 256 px in the paper's words,
    arXiv:2002.05709, App. B.5); up to 32 px it is the whole shorter side, as they do on CIFAR. Bicubic with
    antialiasing, clipped to [0, 1].

    Args:
        size: Side of the output in pixels, >= 1.
        crop: Share of the shorter side that is kept, in (0, 1]; by default the rule above.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1] -> (n, c, size, size), float in [0, 1]. A second argument, the
        keys of the random transforms, is accepted and not used.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, size: int, *, crop: float | None = None) -> None:
        super().__init__()
        check_size(size)
        if crop is None:
            crop = 0.875 if size > 32 else 1.0
        if not 0 < crop <= 1:
            raise ValueError(f"`crop` must be in (0, 1], got {crop}.")
        self.size, self.crop = size, crop

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Crop and resize each image."""
        del keys  # nothing is random here; taking them lets every transform be called alike
        images = as_float(images)
        n, _, height, width = images.shape
        side = max(1, round(self.crop * min(height, width)))
        if side == self.size == height == width:
            return images
        box = {
            "top": (height - side + 1) // 2,  # the authors' rounding of the offset
            "left": (width - side + 1) // 2,
            "height": side,
            "width": side,
        }
        boxes = {name: torch.full((n,), float(value), device=images.device) for name, value in box.items()}
        return crop_resize(images, **boxes, flip=None, size=self.size, interpolation="bicubic").clamp(0, 1)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"{self.size}, crop={self.crop}"
