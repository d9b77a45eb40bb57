"""Colour distortion: jitter with a random order of its operations in each image, and random grey images."""

import torch
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor, nn

from cl_augment._keys import uniform

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green, blue; ITU-R BT.601


def grey(images: Tensor) -> Tensor:
    """Luma of RGB images, (n, 3, h, w) -> (n, 1, h, w); images of one channel are returned as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _check_channels(images: Tensor, *, stage: str) -> None:
    if images.shape[1] not in (1, 3):
        raise ValueError(f"`images` of {stage} must have 1 (grey) or 3 (RGB) channels, got {images.shape[1]}.")


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blend(images: Tensor, operation: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast or saturation, as `operation` (n,) says for each image; hue leaves the image alone.

    All three are clip(f x + (1 - f) y) with another y: black, the image's mean grey, the pixel's grey.
    """
    luma = grey(images)
    mean = luma.mean(dim=(1, 2, 3), keepdim=True)
    factor = factors.gather(1, operation[:, None]).squeeze(1)
    factor = torch.where(operation == _HUE, torch.ones_like(factor), factor)
    contrast = _per_image((operation == _CONTRAST) * (1 - factor))
    saturation = _per_image((operation == _SATURATION) * (1 - factor))
    return (_per_image(factor) * images + contrast * mean + saturation * luma).clamp(0, 1)


def _shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (n,), in turns; images of one channel have no hue."""
    if images.shape[1] == 1:
        return images
    hue, saturation, value = rgb_to_hsv(images).unbind(1)
    hue = torch.remainder(hue + 2 * torch.pi * shift[:, None, None], 2 * torch.pi)
    return hsv_to_rgb(torch.stack([hue, saturation, value], dim=1)).clamp(0, 1)


def jitter(images: Tensor, *, factors: Tensor, shift: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, one after the other, in the order drawn for each image.

    The formulas are torchvision's; each operation clips to [0, 1]. The authors' TensorFlow code takes the contrast
    about the mean of each channel instead of the mean grey, and saturates in HSV.

    Args:
        images: float in [0, 1], shape (n, 3 or 1, h, w).
        factors: Multipliers of brightness, contrast and saturation, shape (n, 3); 1 changes nothing.
        shift: Turn of the hue in turns, shape (n,); 0 changes nothing.
        order: Permutations of (0 brightness, 1 contrast, 2 saturation, 3 hue), int64, shape (n, 4).

    Returns:
        Shape of `images`, in [0, 1].
    """
    factors = torch.cat([factors, torch.ones_like(factors[:, :1])], dim=1)
    hue_at = (order == _HUE).to(torch.uint8).argmax(dim=1)
    nothing = torch.full_like(hue_at, _HUE)
    # Hue costs ten times a blend. Every image has it exactly once, so: the blends before it, hue, the blends after
    # it, rather than four operations at each of four places.
    for place in range(3):
        images = _blend(images, torch.where(hue_at > place, order[:, place], nothing), factors)
    images = _shift_hue(images, shift)
    for place in range(1, 4):
        images = _blend(images, torch.where(hue_at < place, order[:, place], nothing), factors)
    return images


class ColorJitter(nn.Module):
    """SimCLR's colour jitter: random brightness, contrast, saturation and hue, in a random order in each image.

    Brightness, contrast and saturation factors are uniform in [max(0, 1 - 0.8 s), 1 + 0.8 s], the hue turns by a
    uniform share in [-0.2 s, 0.2 s] of the circle, and the whole is applied with probability `p` (Chen et al.,
    arXiv:2002.05709, App. A). Kornia's `ColorJitter` draws one order for the whole batch; this one draws one per image.

    Args:
        strength: s >= 0; the paper uses 1 on ImageNet and 0.5 on CIFAR-10. At most 2.5 (a hue turns by half a circle).
        p: Probability of jittering an image, in [0, 1].

    Shape:
        images (n, 3 or 1, h, w) float in [0, 1], keys (n,) -> same shape. Grey images have no saturation and hue.

    Raises:
        ValueError: An argument is out of its range; on call, another number of channels.
    """

    def __init__(self, strength: float = 1.0, *, p: float = 0.8) -> None:
        super().__init__()
        if not 0 <= strength <= 2.5:
            raise ValueError(f"`strength` must be in [0, 2.5], got {strength}.")
        if not 0 <= p <= 1:
            raise ValueError(f"`p` is a probability in [0, 1], got {p}.")
        self.strength, self.p = strength, p

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Jitter each image by its key."""
        _check_channels(images, stage="ColorJitter")
        u = uniform(keys, 9)
        low, high = max(0.0, 1 - 0.8 * self.strength), 1 + 0.8 * self.strength
        jittered = jitter(
            images,
            factors=low + (high - low) * u[:, :3],
            shift=0.2 * self.strength * (2 * u[:, 3] - 1),
            order=u[:, 4:8].argsort(dim=1),
        )
        return torch.where(_per_image(u[:, 8] < self.p), jittered, images)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"strength={self.strength}, p={self.p}"


class RandomGrayscale(nn.Module):
    """Replace an image by its luma, in all channels, with probability `p`.

    Args:
        p: Probability, in [0, 1]; SimCLR: 0.2.

    Shape:
        images (n, 3 or 1, h, w) float, keys (n,) -> same shape.

    Raises:
        ValueError: `p` is out of its range; on call, another number of channels.
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"`p` is a probability in [0, 1], got {p}.")
        self.p = p

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Make some images grey, by their keys."""
        _check_channels(images, stage="RandomGrayscale")
        return torch.where(_per_image(uniform(keys, 1)[:, 0] < self.p), grey(images).expand_as(images), images)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}"
