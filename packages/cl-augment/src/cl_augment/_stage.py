"""A stage: draws its numbers from keys, and applies them; Kornia's containers can do both, too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cl_augment._images import as_float, check_images, check_range
from cl_augment._keys import check_keys, random_keys, uniform

# What a stage has drawn: tensors with a row for each image. "batch_prob" (bool) is which images it applies to, by the
# name Kornia has for it.
Params = dict[str, Tensor]
Change = Callable[[Tensor, Tensor | None], Tensor]


class Stage(nn.Module):
    """One random operation on a whole batch. Abstract; mixed into the bases of Kornia's augmentations.

    `draw` and `replay` are the two halves of a call: everything random is drawn first, as a function of the keys alone,
    so that it can be looked at, kept and replayed. Within `AugmentationSequential` and `ImageSequential` Kornia asks
    for the numbers by `forward_parameters` and hands them back; there they come from torch's global generator, as those
    of every other stage.
    """

    p: float  # Kornia's name for the probability, by image, that the stage applies
    reads_uint8 = False  # whether `replay` takes bytes as they are
    needs_shape = False  # whether `draw` minds the shape
    takes_sizes = False  # whether `draw` minds that images are smaller than the batch they are padded to
    owns_result = True  # whether what `replay` returns, if not the images, is memory that nobody else holds

    def draw(self, keys: Tensor, shape: torch.Size, sizes: Tensor | None = None) -> Params:
        """What is random, one row for each key: unless a stage draws more, "batch_prob", which images it changes.

        Args:
            keys: Keys, int64, shape (n,).
            shape: Of the batch the stage will see, (n, c, h, w).
            sizes: Height and width of each image, if they are smaller than (h, w), int64, shape (n, 2).

        Returns:
            Tensors of n rows, on the device of `keys`.
        """
        return {"batch_prob": uniform(keys, 1)[:, 0] < self.p}

    def replay(self, images: Tensor, params: Params, *, inplace: bool = False) -> Tensor:
        """The operation, as drawn.

        Args:
            images: float in [0, 1], shape (n, c, h, w).
            params: What `draw` returned, on any device; on the CPU a choice of images is known without waiting for a
                GPU, and only those images are computed.
            inplace: Whether `images` may be overwritten.

        Returns:
            The images, changed.
        """
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What to call it before people."""
        return type(self).__name__

    def shape_after(self, shape: torch.Size) -> torch.Size:
        """Shape of the output for a batch of this shape."""
        return shape

    def forward(
        self,
        images: Tensor,
        keys: Tensor | None = None,
        *,
        params: Params | None = None,
        generator: torch.Generator | None = None,
        **of_kornia: Any,
    ) -> Tensor:
        """Draw and apply.

        Args:
            images: uint8 or float in [0, 1], shape (n, c, h, w).
            keys: Keys from `sample_keys`, shape (n,); without them fresh ones are drawn.
            params: How Kornia's containers hand over what `forward_parameters` drew.
            generator: Source of fresh keys; without it, the global generator of the images' device.
            of_kornia: What Kornia's containers pass on besides.

        Returns:
            float in [0, 1]; float32 for uint8, else the dtype of `images`.

        Raises:
            TypeError: `images` or `keys` have another dtype.
            ValueError: `images` or `keys` have another shape, or `images` leave [0, 1].
        """
        if params is not None:
            return super().forward(images, params=params, **of_kornia)
        check_images(images)
        check_range(images)
        if keys is None:
            keys = random_keys(len(images), device=images.device, generator=generator)
        check_keys(keys, len(images))
        return self.replay(images if self.reads_uint8 else as_float(images), self.draw(keys, images.shape))

    def forward_parameters(self, batch_shape: torch.Size) -> Params:
        """Kornia's: fresh draws for a batch (n, c, h, w), by the global generator of the CPU."""
        shape = torch.Size(batch_shape)
        same: bool = self.same_on_batch  # type: ignore[assignment]
        keys = random_keys(1 if same else shape[0], device=torch.device("cpu"))
        params = self.draw(keys.expand(shape[0]), shape)
        params.setdefault("batch_prob", torch.ones(shape[0], dtype=torch.bool))
        after = self.shape_after(shape)
        if after != shape:  # by this name Kornia's containers tell the stages behind it what size they will see
            params["output_size"] = torch.tensor(after[2:]).expand(shape[0], -1)
        return params | {"forward_input_shape": torch.tensor(shape)}

    def apply_transform(
        self, input: Tensor, params: Params, flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Kornia's: the operation on a batch of floats."""
        return self.replay(input, params)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def whole_images(keys: Tensor, shape: torch.Size) -> Tensor:
    """Height and width of each image of a batch that is not padded, int64, (n, 2), on the device of `keys`."""
    # writes the numbers on the device; a tensor made of a list would be copied there and wait
    return torch.stack([torch.full_like(keys, extent) for extent in shape[2:]], dim=1)


def chosen_rows(params: Params) -> Tensor | None:
    """Numbers of the images a stage applies to, int64, or None where finding out would wait for a device.

    A graph that is compiled has to be one for every choice, so there, too, it is None.
    """
    chosen = params["batch_prob"]
    if torch.compiler.is_compiling() or chosen.device.type != "cpu":
        return None
    return chosen.nonzero().squeeze(1)


def change_chosen(images: Tensor, params: Params, change: Change, *, inplace: bool) -> Tensor:
    """The images with those that are chosen changed, only these being computed where the choice is known on the host.

    Args:
        images: Shape (n, c, h, w).
        params: What was drawn; "batch_prob" is the choice.
        change: `(images, rows) -> images`, new ones: some of the images and their numbers, None for all of them. One
            channel stands for all.
        inplace: Whether `images` may be overwritten.

    Returns:
        Shape of `images`.
    """
    rows = chosen_rows(params)
    if rows is None:
        return torch.where(per_image(params["batch_prob"], images), change(images, None), images)
    if len(rows) == len(images):
        return change(images, None).expand_as(images).contiguous()
    rows = rows.to(images.device, non_blocking=True)
    changed = change(images.index_select(0, rows), rows).expand(-1, images.shape[1], -1, -1)
    return (images if inplace else images.clone()).index_copy_(0, rows, changed)


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Values (n,) as (n, 1, 1, 1), of the dtype (bool stays) and on the device of `images`."""
    dtype = values.dtype if values.dtype == torch.bool else images.dtype
    return values.to(device=images.device, dtype=dtype, non_blocking=True)[:, None, None, None]
