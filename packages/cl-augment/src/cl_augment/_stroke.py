"""Random thickness and ink of strokes, the counterpart of colour jitter for bright writing on black ground."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_augment._keys import check_keys, uniform


class RandomStroke(nn.Module):
    """Thicken or thin bright strokes and change their ink, at random in each image.

    With a uniform in [-thickness, thickness], the image x becomes x + a (dilate(x) - x) for a > 0 and
    x + |a| (erode(x) - x) for a < 0, dilation and erosion being the maximum and minimum over 3 x 3 pixels. Then
    x -> clip(c x^g) with log g uniform in [-gamma, gamma] and c uniform in [1 - contrast, 1 + contrast].

    Args:
        thickness: Greatest share of a full dilation or erosion, in [0, 1].
        gamma: Greatest natural logarithm of the exponent, >= 0.
        contrast: Greatest relative change of brightness, in [0, 1).

    Shape:
        images (n, c, h, w) float in [0, 1], keys (n,) -> same shape.

    Raises:
        TypeError: On call, `keys` of another dtype.
        ValueError: An argument is out of its range; on call, another number of `keys` than images.
    """

    def __init__(self, *, thickness: float = 0.5, gamma: float = 0.5, contrast: float = 0.3) -> None:
        super().__init__()
        if not 0 <= thickness <= 1:
            raise ValueError(f"`thickness` must be in [0, 1], got {thickness}.")
        if gamma < 0:
            raise ValueError(f"`gamma` must be at least 0, got {gamma}.")
        if not 0 <= contrast < 1:
            raise ValueError(f"`contrast` must be in [0, 1), got {contrast}.")
        self.thickness, self.gamma, self.contrast = thickness, gamma, contrast

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Change the strokes of each image by its key."""
        check_keys(keys, len(images))
        share, exponent, ink = (2 * uniform(keys, 3) - 1)[:, :, None, None, None].unbind(1)
        if self.thickness > 0:
            thick = functional.max_pool2d(images, 3, stride=1, padding=1)
            thin = -functional.max_pool2d(-images, 3, stride=1, padding=1)
            images = images + self.thickness * share.abs() * (torch.where(share > 0, thick, thin) - images)
        # the floor keeps a finite slope at 0 for whoever differentiates through the views
        images = images.clamp(min=1e-6) ** torch.exp(self.gamma * exponent)
        return ((1 + self.contrast * ink) * images).clamp(0, 1)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"thickness={self.thickness}, gamma={self.gamma}, contrast={self.contrast}"
