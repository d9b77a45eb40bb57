"""Gaussian blur with a width drawn for each image."""

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from cl_augment._keys import uniform


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
        u = uniform(keys, 2)
        sigma = (self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[:, :1]).expand(-1, 2)
        taps = 2 * (images.shape[-2] // 10 // 2) + 1
        if taps == 1:
            return images  # a kernel of one tap is the identity
        if images.shape[-1] <= taps // 2:
            raise ValueError(f"`images` {images.shape[-2]} px high must be over {taps // 2} px wide to be blurred.")
        blurred = gaussian_blur2d(images, (taps, taps), sigma.to(images.dtype), border_type="reflect", separable=True)
        return torch.where(u[:, 1, None, None, None] < self.p, blurred.clamp(0, 1), images)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"p={self.p}, sigma={self.sigma}"
