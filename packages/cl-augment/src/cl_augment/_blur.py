"""Gaussian blur with a width drawn for each image."""

import torch
from kornia.filters import filter2d_separable
from torch import Tensor, nn

from cl_augment._keys import uniform


def blur(images: Tensor, *, sigma: Tensor) -> Tensor:
    """Blur each image by its own Gaussian, borders reflected.

    Args:
        images: float, shape (n, c, h, w); w must exceed half the kernel.
        sigma: Standard deviations in pixels, > 0, shape (n,).

    Returns:
        Shape of `images`. The kernel has 2 (h // 20) + 1 taps.
    """
    radius = images.shape[-2] // 20
    tap = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    # Kornia's gaussian_blur2d would do but for a check of sigma that waits for the device.
    kernel = torch.exp(-0.5 * (tap / sigma[:, None].to(images.dtype)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    return filter2d_separable(images, kernel, kernel, border_type="reflect")


class GaussianBlur(nn.Module):
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
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"`p` is a probability in [0, 1], got {p}.")
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"`sigma` must be an increasing pair above 0, got {sigma}.")
        self.p, self.sigma = p, sigma

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Blur some images, by their keys."""
        height, width = images.shape[-2:]
        radius = height // 20
        if radius == 0:
            return images  # a kernel of one tap is the identity
        if width <= radius:
            raise ValueError(f"`images` {height} px high must be over {radius} px wide to be blurred.")
        u = uniform(keys, 2)
        blurred = blur(images, sigma=self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[:, 0])
        return torch.where(u[:, 1, None, None, None] < self.p, blurred.clamp(0, 1), images)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}, sigma={self.sigma}"
