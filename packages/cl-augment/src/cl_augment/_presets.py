"""The augmentations of the papers, by name."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cl_augment._blur import GaussianBlur
from cl_augment._chain import Images
from cl_augment._crop import RandomResizedCropFlip
from cl_augment._grey import RandomGrayscale
from cl_augment._jitter import ColorJitter
from cl_augment._resample import Interpolation
from cl_augment._sobel import Sobel
from cl_augment._solarize import Solarize
from cl_augment._stage import Params
from cl_augment._views import Chains, TwoViewAugment


class SimCLRAugment(TwoViewAugment):
    """SimCLR's two views: random resized crop and flip, colour jitter, grey images, blur.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709,
    App. A; the order is the authors' code's. No mean and standard deviation are subtracted unless asked for: the
    network sees [0, 1], as theirs does. The paper's ablations (Fig. 5) are arguments: `strength=0, grey=0` for crops
    without colour distortion, with `blur=False` for crops alone; `sobel=True` for edges instead of colour distortion.

    Args:
        size: Side of the views in pixels, >= 8.
        strength: Strength of the colour jitter, >= 0: 1 on ImageNet, 0.5 on CIFAR-10; 0 leaves it out.
        hue: Greatest turn of the hue at strength 1, in turns, >= 0. Images without three channels need 0.
        grey: Probability of grey images, in [0, 1].
        blur: Whether to blur half of the views; None: above 32 px only, as in the paper.
        sobel: Whether to replace jitter and grey images by Sobel's filter.
        interpolation: Of the crop, "bicubic" as in the paper's code, or "bilinear".
        antialias: Whether the crop's filter widens where a box is larger than the view.
        extra: Stages that follow, such as Kornia's `RandomErasing`, for both views.
        mean: Subtracted from each channel at the end.
        std: What each channel is then divided by.
        dtype: Of the views; None for that of the images, and float32 for uint8.
        memory_format: Of the views.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device, or a list of (c, h, w); keys (n,) or None -> two
        views of (n, c, size, size), float in [0, 1] unless normalised or changed by `extra`.

    Raises:
        ValueError: An argument is out of its range; on call, other than three channels and a hue to turn.
    """

    def __init__(
        self,
        size: int,
        *,
        strength: float = 1.0,
        hue: float = 0.2,
        grey: float = 0.2,
        blur: bool | None = None,
        sobel: bool = False,
        interpolation: Interpolation = "bicubic",
        antialias: bool = True,
        extra: Sequence[nn.Module] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        jitter, to_grey = ColorJitter(strength, hue=hue), RandomGrayscale(grey)
        stages: list[nn.Module] = [RandomResizedCropFlip(size, interpolation=interpolation, antialias=antialias)]
        if sobel:
            stages.append(Sobel())
        elif strength > 0:
            stages.append(jitter)
        if grey > 0 and not sobel:
            stages.append(to_grey)
        if blur or (blur is None and size > 32):
            stages.append(GaussianBlur())
        stages += extra
        super().__init__(stages, stages, mean=mean, std=std, dtype=dtype, memory_format=memory_format)


class BYOLAugment(TwoViewAugment):
    """BYOL's two views, which differ: the first is always blurred, the second seldom, but solarised at times.

    Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733, App. B and Table 6: crop and flip; jitter of
    brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1 with probability 0.8; grey with 0.2; blur with 1 and 0.1;
    solarisation with 0 and 0.2. Their code adds to the brightness where this multiplies it, takes the contrast about
    the mean of each channel and saturates in HSV; it normalises by ImageNet's mean and deviation in the network (here
    `mean` and `std`).

    Args:
        size: Side of the views in pixels, >= 8.
        hue: Greatest turn of the hue, in turns, in [0, 0.5]. Images without three channels need 0.
        interpolation: Of the crop, "bicubic" as in the paper's code, or "bilinear".
        antialias: Whether the crop's filter widens where a box is larger than the view.
        extra: Stages that follow, for both views.
        mean: Subtracted from each channel at the end.
        std: What each channel is then divided by.
        dtype: Of the views; None for that of the images, and float32 for uint8.
        memory_format: Of the views.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device, or a list of (c, h, w); keys (n,) or None -> two
        views of (n, c, size, size), float in [0, 1] unless normalised or changed by `extra`.

    Raises:
        ValueError: An argument is out of its range; on call, other than three channels and a hue to turn.
    """

    def __init__(
        self,
        size: int,
        *,
        hue: float = 0.1,
        interpolation: Interpolation = "bicubic",
        antialias: bool = True,
        extra: Sequence[nn.Module] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        shared = [
            RandomResizedCropFlip(size, interpolation=interpolation, antialias=antialias),
            ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=hue),
            RandomGrayscale(0.2),
        ]
        super().__init__(
            [*shared, GaussianBlur(1.0), *extra],
            [*shared, GaussianBlur(0.1), Solarize(0.2), *extra],
            mean=mean,
            std=std,
            dtype=dtype,
            memory_format=memory_format,
        )


class LinearEvalAugment(Chains):
    """What a linear classifier is trained on: random resized crop and flip, one view.

    arXiv:2002.05709, App. B.5.

    Args:
        size: Side of the output in pixels, >= 8.
        mean: Subtracted from each channel at the end.
        std: What each channel is then divided by.
        dtype: Of the output; None for that of the images, and float32 for uint8.
        memory_format: Of the output.

    Shape:
        images (n, c, h, w), uint8 or float in [0, 1], any device, or a list of (c, h, w); keys (n,) or None ->
        (n, c, size, size), float in [0, 1].

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        crop = RandomResizedCropFlip(size)
        super().__init__([[crop]], mean=mean, std=std, dtype=dtype, memory_format=memory_format)

    def forward(
        self,
        images: Images,
        keys: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One view of each image."""
        return self.stacked(images, keys, sizes=sizes, generator=generator)

    def replay(self, images: Images, params: Sequence[Sequence[Params]]) -> Tensor:
        """The view that `params`, from `draw`, describe: that of the call with the same keys."""
        return self.restacked(images, params)
