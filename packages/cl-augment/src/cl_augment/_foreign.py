"""Stages that are not ours: modules called as `stage(images, keys)`, and Kornia's augmentations."""

from itertools import chain
from typing import Any

import torch
from kornia.augmentation import AugmentationBase2D
from torch import Tensor, nn

from cl_augment._images import as_float
from cl_augment._stage import Params, Stage


def as_stage(module: nn.Module) -> Stage:
    """The module as a stage: ours as it is, Kornia's with numbers from keys, any other called with keys.

    Raises:
        TypeError: It is no module, or one of Kornia's that works on more than single images.
    """
    if isinstance(module, Stage):
        return module
    if isinstance(module, AugmentationBase2D):
        return KorniaStage(module)
    if not isinstance(module, nn.Module):
        raise TypeError(f"a stage must be a module called as `stage(images, keys)`, got {type(module).__name__}.")
    if type(module).__module__.startswith("kornia.augmentation"):
        raise TypeError(
            f"{type(module).__name__} is no stage: of Kornia's augmentations, those of single images can be "
            "(subclasses of AugmentationBase2D); pass the members of a container one by one."
        )
    return KeyedStage(module)


class ForeignStage(Stage):
    """A module that is not ours. Abstract."""

    module: Any  # a module, with what its class has beyond one
    owns_result = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._after: dict[torch.Size, torch.Size] = {}

    def call_once(self, shape: torch.Size) -> Tensor:
        """What it makes of a black image (1, c, h, w)."""
        raise NotImplementedError

    def shape_after(self, shape: torch.Size) -> torch.Size:
        """What one black image becomes, once for each shape."""
        one = torch.Size([1, *shape[1:]])
        if one not in self._after:
            self._after[one] = self.call_once(one).shape
        return torch.Size([shape[0], *self._after[one][1:]])

    @property
    def label(self) -> str:
        """The module's."""
        return type(self.module).__name__

    def extra_repr(self) -> str:
        """The module."""
        return repr(self.module)


class KeyedStage(ForeignStage):
    """A module called as `stage(images, keys)`, which draws by itself: its drawn parameters are its keys."""

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """The "keys"."""
        return {"keys": keys}

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Call the module."""
        # a copy: what a module of the caller's does to its argument must not reach the images or another view
        images = as_float(images) if inplace or images.dtype == torch.uint8 else images.clone()
        result: Tensor = self.module(images, params["keys"].to(images.device, non_blocking=True))
        return result

    def call_once(self, shape: torch.Size) -> Tensor:
        """Where the module's parameters are, if it has any."""
        held = next(chain(self.module.parameters(), self.module.buffers()), torch.empty(0))
        key = torch.zeros(1, dtype=torch.int64, device=held.device)
        result: Tensor = self.module(torch.zeros(shape, device=held.device), key)
        return result


def _equal(one: Params, other: Params) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _numbers_rows(values: Tensor) -> bool:
    """Whether row i holds nothing but i."""
    rows = torch.arange(len(values)).to(values)
    return values.numel() > 0 and bool((rows == values.reshape(len(values), -1).T).all())


class KorniaStage(ForeignStage):
    """An augmentation of Kornia's with its parameters drawn for each image from its key.

    Kornia draws from torch's global generator. For each image that generator is seeded by the image's key, asked for
    the parameters of a batch of one, and put back as it was. So this is a loop over images on the host, about 0.1 ms
    each; keys on a GPU are refused, as the host would wait for them. The views are then the same in any batch, bit for
    bit where Kornia's arithmetic is (`RandomJPEG` and `RandomElasticTransform` round by the size of the batch).

    Args:
        module: One of Kornia's augmentations of single images.

    Shape:
        images (n, c, h, w) float in [0, 1], keys (n,) on the CPU -> what the augmentation makes of them.

    Raises:
        TypeError: `module` is none of Kornia's augmentations of images.
        ValueError: On call, a parameter is drawn once for a whole batch, such as `order` of `ColorJitter`, numbers its
            images, or differs in shape; numbers are drawn besides the parameters; or the keys are on a GPU.
    """

    needs_shape = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        if not isinstance(module, AugmentationBase2D):
            raise TypeError(f"`module` must be an augmentation of Kornia's, got {type(module).__name__}.")

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """What Kornia calls the parameters."""
        name = type(self.module).__name__
        if keys.device.type != "cpu":
            raise ValueError(f"`keys` must be on the CPU, where Kornia's {name} draws, got {keys.device}.")
        one = torch.Size([1, *shape[1:]])
        # The first few seeds show what never changes, also where there is one image, or none, to compare.
        draws = [self._draw(seed, one) for seed in (*keys.tolist(), *range(4))]
        if self.module.same_on_batch and not all(_equal(draw, draws[0]) for draw in draws):
            raise ValueError(f"`same_on_batch` of {name} must be False: draws are by image, by its key.")
        by_image = self._rows_by_image(shape)
        params = {}
        for parameter in sorted(by_image | draws[0].keys()):
            values = [draw[parameter] for draw in draws]
            if parameter in by_image:
                if any(value.shape != values[0].shape for value in values):
                    raise ValueError(f"`{parameter}` of Kornia's {name} has another shape for every image.")
                params[parameter] = torch.cat(values)[: len(keys)]
            elif any(not torch.equal(value, values[0]) for value in values):
                raise ValueError(
                    f"`{parameter}` of Kornia's {name} is drawn once for a whole batch, so it cannot follow from the "
                    "key of an image."
                )
        return params

    def _draw(self, seed: int, shape: torch.Size) -> Params:
        """Parameters for a batch of this shape, by the global generator seeded so; its state is put back."""
        generator = torch.default_generator
        state = generator.get_state()
        self.module.set_rng_device_and_dtype(torch.device("cpu"), torch.float32)
        try:
            generator.manual_seed(seed)
            return self.module.forward_parameters(shape)
        finally:
            generator.set_state(state)

    def _rows_by_image(self, shape: torch.Size) -> set[str]:
        """Names of the parameters that have a row for each image: those whose length follows the batch's."""
        three, five = (self._draw(0, torch.Size([n, *shape[1:]])) for n in (3, 5))
        names = {
            name for name, value in three.items() if value.ndim > 0 and value.shape[0] == 3 and five[name].shape[0] == 5
        }
        for name in sorted(names):
            if all(_numbers_rows(drawn[name]) for drawn in (three, five)):
                raise ValueError(
                    f"`{name}` of Kornia's {type(self.module).__name__} numbers the images of a batch, so it cannot "
                    "follow from the key of an image."
                )
        return names

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """Call the augmentation with these parameters."""
        constant = self._draw(0, torch.Size([1, *images.shape[1:]]))  # what has no row for each image
        params = constant | params | {"forward_input_shape": torch.tensor(images.shape)}
        return self._call(images, params)

    def _call(self, images: Tensor, params: Params) -> Tensor:
        """Call the augmentation, which must not draw any more."""
        before = torch.default_generator.get_state()
        result: Tensor = self.module(images, params=params)
        if not torch.equal(before, torch.default_generator.get_state()):
            torch.default_generator.set_state(before)
            raise ValueError(
                f"Kornia's {type(self.module).__name__} draws random numbers besides its parameters, which "
                "cannot follow from the keys."
            )
        return result

    def call_once(self, shape: torch.Size) -> Tensor:
        """By the parameters of seed 0."""
        return self._call(torch.zeros(shape), self._draw(0, shape))
