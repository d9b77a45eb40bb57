"""Colour jitter with a random order of its operations in each image."""

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from cl_augment._grey import grey
from cl_augment._hue import shift_hue
from cl_augment._images import check_probability
from cl_augment._keys import uniform
from cl_augment._stage import Params, Stage, per_image

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def _mean_grey(luma: Tensor) -> Tensor:
    # rows first: torch splits the sum over one whole image, but not over one of many, among its threads
    return luma.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def _blend_(images: Tensor, weight: Tensor, *, saturates: Tensor, contrasts: Tensor | None) -> Tensor:
    """Images <- clip(images + weight (target - images)), all but `images` (n, 1, 1, 1); in place.

    The target is the pixel's grey where an image `saturates`, its mean grey where it `contrasts`, else black.
    """
    luma = grey(images)
    target = luma * saturates if contrasts is None else torch.addcmul(_mean_grey(luma) * contrasts, luma, saturates)
    return images.lerp_(target, weight).clamp_(0, 1)


def _factors(params: Params) -> Tensor:
    """Multipliers by operation, (n, 4): that of the hue is 1."""
    factors = [params["brightness"], params["contrast"], params["saturation"]]
    return torch.stack([*factors, torch.ones_like(factors[0])], dim=1)


def _jitter_chosen(images: Tensor, params: Params, *, inplace: bool, turns: bool) -> Tensor:
    """The chosen images only, with the choice known on the host.

    Hue costs more than the other operations together, so it is done once for all images, and these are sorted by the
    place hue has in their order: then those with blends to do before it, or after it, lie side by side.
    """
    chosen, order = params["batch_prob"], params["order"]
    place = (order == HUE).to(torch.uint8).argmax(dim=1)
    rows = torch.where(chosen, place, 4).argsort(stable=True)
    counts = torch.bincount(torch.where(chosen, place, 4), minlength=5).tolist()
    rows = rows[: sum(counts[:4])]
    order, factors, shift = order[rows], _factors(params)[rows], params["hue"][rows]
    rows = rows.to(images.device, non_blocking=True)
    part = images.index_select(0, rows)

    def blend(span: slice, at: int) -> None:
        operation = order[span, at]
        weight = 1 - factors[span].gather(1, operation[:, None]).squeeze(1)
        _blend_(
            part[span],
            per_image(weight, images),
            saturates=per_image((operation == SATURATION).to(weight), images),
            contrasts=per_image((operation == CONTRAST).to(weight), images),
        )

    for at in range(3):
        blend(slice(sum(counts[: at + 1]), None), at)
    if turns:
        part = shift_hue(part, shift.to(device=images.device, dtype=images.dtype, non_blocking=True))
    for at in range(1, 4):
        blend(slice(0, sum(counts[:at])), at)
    return (images if inplace else images.clone()).index_copy_(0, rows, part)


def _jitter_masked(images: Tensor, params: Params, *, turns: bool) -> Tensor:
    """All images, the unchosen ones unchanged: one sequence of operations for every order.

    Only contrast asks for the whole image, so it splits the sequence; the operations on single pixels before it and
    after it are two blends, hue, two blends, each of which an image takes part in or not.
    """
    params = {name: values.to(images.device, non_blocking=True) for name, values in params.items()}
    chosen, rank, factors = params["batch_prob"], params["order"].argsort(dim=1), _factors(params).to(images.dtype)
    zero = torch.zeros_like(factors[:, 0])
    result = images.clone()
    for after_contrast in (False, True):
        in_half = [chosen & ((rank[:, op] > rank[:, CONTRAST]) == after_contrast) for op in range(4)]
        for after_hue in (False, True):
            bright, sat = (in_half[op] & ((rank[:, op] > rank[:, HUE]) == after_hue) for op in (BRIGHTNESS, SATURATION))
            bright_first = bright & ~(sat & (rank[:, SATURATION] < rank[:, BRIGHTNESS]))
            for is_bright, is_sat in (
                (bright_first, sat & ~bright_first),
                (bright & ~bright_first, sat & bright_first),
            ):
                weight = torch.where(is_bright, 1 - factors[:, BRIGHTNESS], zero)
                weight = torch.where(is_sat, 1 - factors[:, SATURATION], weight)
                saturates = per_image(is_sat.to(images.dtype), images)
                _blend_(result, per_image(weight, images), saturates=saturates, contrasts=None)
            if turns and not after_hue:
                turned = shift_hue(result, params["hue"].to(images.dtype))
                result = torch.where(per_image(in_half[HUE], images), turned, result)
        if not after_contrast:
            weight = torch.where(chosen, 1 - factors[:, CONTRAST], zero)
            result.lerp_(_mean_grey(grey(result)), per_image(weight, images)).clamp_(0, 1)
    return result


class ColorJitter(Stage, IntensityAugmentationBase2D):
    """SimCLR's colour jitter: random brightness, contrast, saturation and hue, in a random order in each image.

    The factors of brightness, contrast and saturation are uniform in [max(0, 1 - a s), 1 + a s] with the strength s and
    each one's a; the hue turns by a uniform share in [-a s, a s] of the circle. The whole is applied with probability
    `p`. Formulas are torchvision's, each operation clips to [0, 1], and so do Chen et al., arXiv:2002.05709, App. A.
    Kornia's `ColorJitter` draws one order for the whole batch; this one draws one for each image.

    The authors' TensorFlow code takes the contrast about the mean of each channel instead of the mean grey, and
    saturates in HSV.

    Images of other than three channels have no hue: `hue` must be 0. Their grey is the mean of the channels.

    Args:
        strength: s >= 0; the paper uses 1 on ImageNet and 0.5 on CIFAR-10.
        brightness: a of the brightness, >= 0.
        contrast: a of the contrast, >= 0.
        saturation: a of the saturation, >= 0.
        hue: a of the hue, >= 0; s times a is at most 0.5, half a circle.
        p: Probability of jittering an image, in [0, 1].

    Shape:
        images (n, c, h, w) float in [0, 1], keys (n,) -> same shape.

    Raises:
        ValueError: An argument is out of its range; on call, other than three channels and a hue to turn.
    """

    def __init__(
        self,
        strength: float = 1.0,
        *,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        p: float = 0.8,
    ) -> None:
        super().__init__(p=p)
        check_probability(p)
        named = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, value in {"strength": strength, **named}.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")
        if not strength * hue <= 0.5:
            raise ValueError(
                f"`strength` times `hue` must be at most 0.5, half a circle, got {strength} * {hue} = {strength * hue}."
            )
        self.strength, self.brightness, self.contrast = strength, brightness, contrast
        self.saturation, self.hue = saturation, hue

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """Factors "brightness", "contrast", "saturation"; "hue" in turns; "order" (n, 4), a permutation of these."""
        u = uniform(keys, 9)
        params = {}
        for place, name in enumerate(("brightness", "contrast", "saturation")):
            spread = self.strength * getattr(self, name)
            low, high = max(0.0, 1 - spread), 1 + spread
            params[name] = low + (high - low) * u[:, place]
        params["hue"] = self.strength * self.hue * (2 * u[:, 3] - 1)
        params["order"] = u[:, 4:8].argsort(dim=1)
        params["batch_prob"] = u[:, 8] < self.p
        return params

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Jitter the chosen images."""
        turns = self.strength * self.hue > 0
        if turns and images.shape[1] != 3:
            raise ValueError(f"`images` of {images.shape[1]} channels have no hue to turn: pass hue=0 to ColorJitter.")
        if torch.compiler.is_compiling() or params["order"].device.type != "cpu":
            return _jitter_masked(images, params, turns=turns)
        return _jitter_chosen(images, params, inplace=inplace, turns=turns)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"strength={self.strength}, brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, p={self.p}"
        )
