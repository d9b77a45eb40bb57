"""The deterministic transform of the tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_augment._chain import Images, check_batch
from cl_augment._images import as_float, check_size
from cl_augment._resample import Boxes, crop_resize
from cl_augment._stage import Params, Stage, whole_images
from cl_augment._views import Chains


class CentreCrop(Stage):
    """A centred square of the image, `crop` of the shorter side, resized to `size`: nothing is random."""

    reads_uint8 = needs_shape = takes_sizes = True

    def __init__(self, size: int, crop: float) -> None:
        super().__init__()
        self.size, self.crop = size, crop

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """Boxes "top", "left", "height", "width" in pixels, by the authors' rounding of the offset."""
        sizes = whole_images(keys, shape) if sizes is None else sizes
        # float64, as in Python: 0.875 of 100 px rounds to the even 88
        side = torch.round(self.crop * sizes.amin(dim=1).double()).long().clamp(min=1)
        height, width = sizes.unbind(1)
        top, left = ((extent - side + 1) // 2 for extent in (height, width))
        return Boxes(top, left, side, side)._asdict()

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Crop and resize each image."""
        boxes = Boxes(*(params[name] for name in Boxes._fields))
        views = crop_resize(images, boxes, flip=None, size=self.size, interpolation="bicubic", antialias=True)
        return views.clamp_(0, 1)

    def shape_after(self, shape: torch.Size) -> torch.Size:
        """(n, c, size, size)."""
        return torch.Size([shape[0], shape[1], self.size, self.size])

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"{self.size}, crop={self.crop}"


class EvalTransform(Chains):
    """A centred square crop, resized to `size`.

    Above 32 px the square has 0.875 of the shorter side, as in the authors' code (224 of 256 px in the paper's words,
    arXiv:2002.05709, App. B.5); up to 32 px it is the whole shorter side, as they do on CIFAR. Bicubic with
    antialiasing, clipped to [0, 1].

    Args:
        size: Side of the output in pixels, >= 8.
        crop: Share of the shorter side that is kept, in (0, 1]; by default the rule above.
        mean: Subtracted from each channel at the end.
        std: What each channel is then divided by.
        dtype: Of the output; None for that of the images, and float32 for uint8.
        memory_format: Of the output.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device, or a list of (c, h, w) -> (n, c, size, size), float
        in [0, 1] before `mean` and `std`. A second argument, the keys of the random transforms, is accepted and not
        used, so that every transform is called alike.

    Raises:
        TypeError: On call, images of another dtype.
        ValueError: An argument is out of its range; on call, images outside [0, 1] or below 2 px.
    """

    def __init__(
        self,
        size: int,
        *,
        crop: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        check_size(size)
        if crop is None:
            crop = 0.875 if size > 32 else 1.0
        if not 0 < crop <= 1:
            raise ValueError(f"`crop` must be in (0, 1], got {crop}.")
        super().__init__([[CentreCrop(size, crop)]], mean=mean, std=std, dtype=dtype, memory_format=memory_format)
        self.size, self.crop = size, crop

    def forward(self, images: Images, keys: Tensor | None = None, *, sizes: Tensor | None = None) -> Tensor:
        """The centre of each image."""
        del keys
        check_batch(images)
        fits = isinstance(images, Tensor) and images.shape[2:] == (self.size, self.size)
        if isinstance(images, Tensor) and fits and self.crop == 1 and sizes is None:  # nothing to resize
            view = self.finish_with.apply(as_float(images))
            return view.to(self.finish_with.dtype, memory_format=self.finish_with.memory_format, copy=True)
        device = images.device if isinstance(images, Tensor) else images[0].device
        none = torch.zeros(len(images), dtype=torch.int64, device=device)
        return self._run(images, self.draw(images, none, sizes=sizes))

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"{self.size}, crop={self.crop}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
