"""The deterministic transform of the tests."""

import torch
from torch import Tensor, nn

from cl_augment._images import as_float, check_images, check_range, check_size
from cl_augment._resample import Boxes, crop_resize


class EvalTransform(nn.Module):
    """A centred square crop, resized to `size`.

    Above 32 px the square has 0.875 of the shorter side, as in the authors' code (224 of 256 px in the paper's words,
    arXiv:2002.05709, App. B.5); up to 32 px it is the whole shorter side, as they do on CIFAR. Bicubic with
    antialiasing, clipped to [0, 1].

    Args:
        size: Side of the output in pixels, >= 8.
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
        check_images(images)
        check_range(images)
        n, _, height, width = images.shape
        side = max(1, round(self.crop * min(height, width)))
        if side == self.size == height == width:
            return as_float(images)
        edges = (
            (height - side + 1) // 2,  # the authors' rounding of the offset
            (width - side + 1) // 2,
            side,
            side,
        )
        boxes = Boxes(*(torch.full((n,), edge, device=images.device) for edge in edges))
        views = crop_resize(images, boxes, flip=None, size=self.size, interpolation="bicubic", antialias=True)
        return views.clamp_(0, 1)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"{self.size}, crop={self.crop}"
