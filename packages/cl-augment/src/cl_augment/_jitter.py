"""Colour jitter with a random order of its operations in each image."""

import math
from collections.abc import Sequence

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from cl_augment._grey import grey, luma
from cl_augment._hue import shift_hue
from cl_augment._images import check_probability
from cl_augment._keys import uniform
from cl_augment._stage import Params, Stage, per_image

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def _mean(values: Tensor) -> Tensor:
    """Over each image, (n, h, w) -> (n, 1, 1)."""
    # rows first: torch splits the sum over one whole image, but not over one of many, among its threads
    return values.mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)


def _blend_(images: Tensor, weight: Tensor, *, saturates: Tensor, contrasts: Tensor) -> None:
    """Images <- clip(images + weight (target - images)), all but `images` (n, 1, 1, 1); in place.

    The target is the pixel's grey where an image `saturates`, its mean grey where it `contrasts`, else black.
    """
    pixel = grey(images)
    target = torch.addcmul(_mean(pixel[:, 0])[:, None] * contrasts, pixel, saturates)
    images.lerp_(target, weight).clamp_(0, 1)


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
    place = torch.where(chosen, (order == HUE).to(torch.uint8).argmax(dim=1), 4)
    rows = place.argsort(stable=True)
    counts = torch.bincount(place, minlength=5).tolist()
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
        part = torch.stack(shift_hue(part.unbind(1), per_image(shift, images)[:, 0]), dim=1)
    for at in range(1, 4):
        blend(slice(0, sum(counts[:at])), at)
    return (images if inplace else images.clone()).index_copy_(0, rows, part)


def _blended(planes: Sequence[Tensor], target: Tensor, weight: Tensor) -> list[Tensor]:
    """Planes + weight (target - planes), clipped; the planes (n, h, w), the others of a shape that fits."""
    return [torch.lerp(plane, target, weight).clamp(0, 1) for plane in planes]


def _half_masked(planes: Sequence[Tensor], takes: Sequence[Tensor], params: Params, *, turns: bool) -> list[Tensor]:
    """Brightness, saturation and hue in each image's order, where it `takes` part in them.

    Hue is computed once, with two blends before it and two after it: each is brightness, saturation, or, for an image
    with nothing to do there, of weight 0.
    """
    rank = params["order"].argsort(dim=1)
    zero = torch.zeros_like(params["hue"])
    bright_first = rank[:, BRIGHTNESS] < rank[:, SATURATION]
    for after_hue in (False, True):
        bright, sat = (takes[op] & ((rank[:, op] > rank[:, HUE]) == after_hue) for op in (BRIGHTNESS, SATURATION))
        for brightens in (bright_first, ~bright_first):
            is_bright, is_sat = bright & brightens, sat & ~brightens
            weight = torch.where(is_bright, 1 - params["brightness"], zero)
            weight = torch.where(is_sat, 1 - params["saturation"], weight)
            planes = _blended(planes, luma(planes) * _by_image(is_sat, planes), _by_image(weight, planes))
        if turns and not after_hue:
            turned = shift_hue(planes, _by_image(params["hue"], planes))
            takes_hue = takes[HUE][:, None, None]
            planes = [torch.where(takes_hue, new, old) for new, old in zip(turned, planes, strict=True)]
    return list(planes)


def _by_image(values: Tensor, planes: Sequence[Tensor]) -> Tensor:
    return values.to(planes[0].dtype)[:, None, None]


def _jitter_masked(images: Tensor, params: Params, *, turns: bool) -> Tensor:
    """All images, the unchosen ones unchanged: one sequence of operations for every order.

    Only contrast asks for the whole image, so it splits the sequence. A channel is a tensor of its own: all that is
    done to a pixel then has one shape, which torch.compile makes one kernel before the mean and one after it.
    """
    params = {name: values.to(images.device, non_blocking=True) for name, values in params.items()}
    chosen, rank = params["batch_prob"], params["order"].argsort(dim=1)
    before = [chosen & (rank[:, op] < rank[:, CONTRAST]) for op in range(4)]
    after = [chosen & (rank[:, op] > rank[:, CONTRAST]) for op in range(4)]
    planes = _half_masked(images.unbind(1), before, params, turns=turns)
    weight = torch.where(chosen, 1 - params["contrast"], torch.zeros_like(params["contrast"]))
    planes = _blended(planes, _mean(luma(planes)), _by_image(weight, planes))
    return torch.stack(_half_masked(planes, after, params, turns=turns), dim=1)


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
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be at least 0 and finite, got {value}.")
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
            raise ValueError(f"`images` of {images.shape[1]} channels have no hue to turn: pass hue=0.")
        if torch.compiler.is_compiling() or params["order"].device.type != "cpu":
            return _jitter_masked(images, params, turns=turns)
        return _jitter_chosen(images, params, inplace=inplace, turns=turns)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"strength={self.strength}, brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, p={self.p}"
        )
