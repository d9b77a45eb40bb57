"""Gaussian blur with a width drawn for each image."""

import math

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from cl_augment._images import check_probability
from cl_augment._keys import uniform
from cl_augment._resample import mix_rows
from cl_augment._stage import Params, Stage, change_chosen


def _mirrored_taps(extent: int, radius: int, device: torch.device) -> Tensor:
    """Pixels around each of `extent`, mirrored at the borders without repeating them: (extent, 2 radius + 1)."""
    place = torch.arange(extent, device=device)[:, None] + torch.arange(-radius, radius + 1, device=device)
    return (extent - 1) - ((extent - 1) - place.abs()).abs()


def blur(images: Tensor, *, sigma: Tensor) -> Tensor:
    """Blur each image by its own Gaussian, borders reflected.

    Args:
        images: float, shape (n, c, h, w); w must exceed half the kernel.
        sigma: Standard deviations in pixels, > 0, shape (n,).

    Returns:
        Shape of `images`. The kernel has 2 (h // 20) + 1 taps.
    """
    n, c, h, w = images.shape
    radius = h // 20
    tap = torch.arange(-radius, radius + 1, device=images.device, dtype=sigma.dtype)
    kernel = torch.exp(-0.5 * (tap / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images.dtype)[:, None]
    rows = _mirrored_taps(h, radius, images.device).expand(n, h, -1)
    columns = _mirrored_taps(w, radius, images.device).expand(n, w, -1)
    tall = mix_rows(images.reshape(n * c, h, w), rows, kernel.expand(n, h, -1))
    both = mix_rows(tall.transpose(1, 2).contiguous(), columns, kernel.expand(n, w, -1))
    return both.transpose(1, 2).reshape(n, c, h, w)


class GaussianBlur(Stage, IntensityAugmentationBase2D):
    """Blur an image with probability `p` by a Gaussian of random width, its kernel a tenth of the image high.

    sigma is uniform in `sigma` pixels and drawn per image; borders are reflected, as torchvision does. The authors'
    TensorFlow code draws one sigma per batch and pads with zeros, which darkens the borders.

    Args:
        p: Probability, in [0, 1]; SimCLR: 0.5 (arXiv:2002.05709, App. A).
        sigma: Range of the standard deviation in pixels, > 0; SimCLR: (0.1, 2).

    Shape:
        images (n, c, h, w) float in [0, 1], keys (n,) -> same shape. The kernel has 2 (h // 20) + 1 taps: 23 at
        224 px, 9 at 96 px, 3 at 32 px, and 1 (no blur) below 20 px.

    Raises:
        ValueError: An argument is out of its range; on call, images narrower than half the kernel.
    """

    def __init__(self, p: float = 0.5, *, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        super().__init__(p=p)
        check_probability(p)
        if not 0 < sigma[0] <= sigma[1] < math.inf:
            raise ValueError(f"`sigma` must be an increasing pair above 0, got {sigma}.")
        self.sigma = sigma

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """Which images to blur, "batch_prob", and by how much, "sigma" in pixels."""
        u = uniform(keys, 2)
        return {"sigma": self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[:, 0], "batch_prob": u[:, 1] < self.p}

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Blur the chosen images."""
        height, width = images.shape[-2:]
        radius = height // 20
        if radius == 0:
            return images if inplace else images.clone()  # a kernel of one tap is the identity
        if width <= radius:
            raise ValueError(f"`images` {height} px high must be over {radius} px wide to be blurred.")
        sigma = params["sigma"].to(images.device, non_blocking=True)

        def blurred(part: Tensor, rows: Tensor | None) -> Tensor:
            return blur(part, sigma=sigma if rows is None else sigma.index_select(0, rows)).clamp_(0, 1)

        return change_chosen(images, params, blurred, inplace=inplace)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}, sigma={self.sigma}"
