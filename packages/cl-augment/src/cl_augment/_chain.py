"""Running images through chains of stages: what to draw, and which images at a time."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from cl_augment._images import as_float, check_images, check_range
from cl_augment._keys import fold_in
from cl_augment._memory import keep_freed_memory
from cl_augment._stage import Params, Stage

# A batch of equal images, or a list of images of any sizes, each (c, h, w).
Images = Tensor | Sequence[Tensor]

# Bytes of the images and of their views that are worked on at a time. On a CPU what one stage leaves must still be in
# the cache when the next comes; on a GPU the limit only bounds the memory of what lies between.
_CHUNK_BYTES = {"cpu": 13 << 19}
_CHUNK_BYTES_ELSEWHERE = 1 << 28
_CHUNK_IMAGES = {"cpu": 256}  # of small images, more would only take more memory


def check_batch(images: Images) -> None:
    """Raise unless these are images that can be augmented.

    Raises:
        TypeError: Another type or dtype.
        ValueError: Another shape, or values outside [0, 1].
    """
    if isinstance(images, Tensor):
        check_images(images)
        check_range(images)
        return
    if not isinstance(images, Sequence):
        raise TypeError(f"`images` must be a tensor or a list of tensors, got {type(images).__name__}.")
    if not images:
        raise ValueError("`images` must hold at least one image, got an empty list.")
    first = images[0]
    for place, image in enumerate(images):
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"`images` of a list must be tensors (c, h, w), got {got} at {place}.")
        if (image.shape[0], image.dtype, image.device) != (first.shape[0], first.dtype, first.device):
            raise ValueError(
                f"`images` of a list must agree in channels, dtype and device: {first.shape[0]}, {first.dtype}, "
                f"{first.device} at 0, but {image.shape[0]}, {image.dtype}, {image.device} at {place}."
            )
        check_images(image[None])
        check_range(image)


def check_sizes(sizes: Tensor, images: Images) -> None:
    """Raise unless `sizes` are those of the images of a padded batch."""
    if not isinstance(images, Tensor):
        raise ValueError("`sizes` belongs to a padded batch; the images of a list know their own.")
    n, _, height, width = images.shape
    if not isinstance(sizes, Tensor):
        raise TypeError(f"`sizes` must be a tensor, got {type(sizes).__name__}.")
    if sizes.dtype != torch.int64 or sizes.shape != (n, 2):
        raise ValueError(f"`sizes` must be int64 ({n}, 2), got {sizes.dtype} {tuple(sizes.shape)}.")
    if sizes.device.type == "cpu" and n > 0:
        least, most = sizes.amin(0).tolist(), sizes.amax(0).tolist()
        if min(least) < 2 or most[0] > height or most[1] > width:
            raise ValueError(f"`sizes` must lie in 2..{height} and 2..{width}, got from {least} to {most}.")


def check_params(params: Sequence[Sequence[Params]], chains: Sequence[Sequence[Stage]], n: int) -> None:
    """Raise ValueError unless these can be what the chains have drawn for n images."""
    if [len(drawn) for drawn in params] != [len(stages) for stages in chains]:
        raise ValueError(
            f"`params` must have a dictionary for each stage of each view, {[len(stages) for stages in chains]}, got "
            f"{[len(drawn) for drawn in params]}."
        )
    for stages, drawn in zip(chains, params, strict=True):
        for stage, values in zip(stages, drawn, strict=True):
            for name, value in values.items():
                if value.ndim == 0 or len(value) != n:
                    raise ValueError(
                        f"`params` must have a row for each of {n} images, got {name!r} of {stage.label} of shape "
                        f"{tuple(value.shape)}."
                    )


def shape_and_sizes(images: Images, sizes: Tensor | None) -> tuple[torch.Size, Tensor | None]:
    """Shape of the batch, padded if need be, and the sizes within it."""
    if isinstance(images, Tensor):
        if sizes is not None and sizes.device.type != "cpu":
            # unchecked, as the host would wait; what is too large must not read the next image
            height, width = images.shape[2:]
            bounds = torch.stack([sizes.new_full((), height), sizes.new_full((), width)])
            sizes = torch.minimum(sizes.clamp(min=2), bounds)
        return images.shape, sizes
    sizes = torch.tensor([image.shape[1:] for image in images])
    return torch.Size([len(images), images[0].shape[0], *sizes.amax(0).tolist()]), sizes


def draw_chain(
    stages: Sequence[Stage], keys: Tensor, shape: torch.Size, *, sizes: Tensor | None = None, first: int = 0
) -> list[Params]:
    """What each stage draws for a batch of this shape; the stage at place s of its view from `fold_in(keys, s)`."""
    if sizes is not None and not stages[0].takes_sizes:
        raise ValueError(f"images of several sizes must be cropped first, got {stages[0].label}.")
    drawn: list[Params] = []
    before: list[Stage] = []
    for place, stage in enumerate(stages, first):
        if stage.needs_shape:  # what a module of the caller's makes of it is found out by calling it, so only then
            shape = reduce(lambda shape, earlier: earlier.shape_after(shape), before, shape)
            before = []
        drawn.append(stage.draw(fold_in(keys, place), shape, sizes if place == first else None))
        before.append(stage)
    return drawn


def full_precision(images: Tensor) -> Tensor:
    """Half types as float32: what stages hand to each other is not rounded to them. Others as they are."""
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def replay_chain(stages: Sequence[Stage], images: Tensor, params: Sequence[Params]) -> Tensor:
    """One stage after the other; `images` are left as they are."""
    view = full_precision(images)
    owned = view is not images
    for stage, drawn in zip(stages, params, strict=True):
        if view.dtype == torch.uint8 and not stage.reads_uint8:
            view, owned = as_float(view), True
        result = stage.replay(view, drawn, inplace=owned)
        owned = owned if result is view else stage.owns_result
        view = result
    return as_float(view)


class Finish(NamedTuple):
    """What is done to a view as it is written: (x - mean) / std by channel, the dtype, the order in memory."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    dtype: torch.dtype | None
    memory_format: torch.memory_format

    def checked(self) -> Self:
        """Itself, or TypeError or ValueError."""
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if values is not None and (not isinstance(values, Sequence) or not values):
                raise TypeError(f"`{name}` must be a sequence of numbers, one for each channel, got {values!r}.")
        if self.memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(f"`memory_format` must be contiguous_format or channels_last, got {self.memory_format}.")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"`mean` and `std` go together, got {self.mean} and {self.std}.")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError(f"`mean` and `std` must be equally long, got {self.mean} and {self.std}.")
            if not all(0 < value < math.inf for value in self.std):
                raise ValueError(f"`std` must be positive, got {self.std}.")
            if not all(map(math.isfinite, self.mean)):
                raise ValueError(f"`mean` must be finite, got {self.mean}.")
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise TypeError(f"`dtype` of the views must be a floating point type, got {self.dtype}.")
        return self

    def apply(self, view: Tensor) -> Tensor:
        """Normalise the view (n, c, h, w); the dtype and the order in memory are those of what it is written to."""
        if self.mean is not None and self.std is not None:
            if len(self.mean) not in (1, view.shape[1]):
                raise ValueError(f"`mean` must have a value for each of {view.shape[1]} channels, got {self.mean}.")
            # written on the device by itself; a tensor made of a list would be copied there and wait
            mean, std = (torch.stack([view.new_full((1, 1), v) for v in values]) for values in (self.mean, self.std))
            view = torch.addcmul(-mean / std, view, 1 / std)
        return view


class Make(Protocol):
    """What makes the views of one chunk by one chain."""

    def __call__(self, stages: Sequence[Stage], images: Tensor, params: Sequence[Params], finish: Finish) -> Tensor: ...


def make_views(stages: Sequence[Stage], images: Tensor, params: Sequence[Params], finish: Finish) -> Tensor:
    """The views of these images, but for their dtype and order in memory."""
    return finish.apply(replay_chain(stages, images, params)).contiguous()


def run(
    chains: Sequence[Sequence[Stage]],
    sources: Sequence[Images],
    params: Sequence[Sequence[Params]],
    finish: Finish,
    make: Make,
) -> Tensor:
    """Views of all chains, first those of the first: (chains n, c, h, w).

    Args:
        chains: Stages of each view.
        sources: What each chain starts from, n images.
        params: What each stage of each chain has drawn.
        finish: What is done last.
        make: `make_views`, or that compiled.

    Returns:
        Views, dtype by `finish`, or float32 for uint8, or as the images.
    """
    n = len(sources[0])
    first = sources[0][0] if n else sources[0]
    assert isinstance(first, Tensor)
    if first.device.type == "cpu" and not torch.compiler.is_compiling():
        keep_freed_memory()
    views: Tensor | None = None
    for rows in chunks(shape_and_sizes(sources[0], None)[0], first.device):
        for number, (stages, source, drawn) in enumerate(zip(chains, sources, params, strict=True)):
            part, numbers = batch_of(source, rows), rows_of(drawn, rows)
            if isinstance(source, Tensor):
                view = make(stages, part, numbers, finish)
            else:  # their size changes from chunk to chunk, and the compiler would make a graph for each
                cut = stages[0].replay(full_precision(part), numbers[0])
                view = make(stages[1:], cut, numbers[1:], finish)
            if views is None:
                dtype = finish.dtype or (view.dtype if first.dtype == torch.uint8 else first.dtype)
                shape = [len(chains) * n, *view.shape[1:]]
                views = torch.empty(shape, dtype=dtype, device=view.device, memory_format=finish.memory_format)
            elif view.shape[1:] != views.shape[1:]:
                shapes = tuple(views.shape[1:]), tuple(view.shape[1:])
                raise ValueError(f"the views must agree in shape, got {shapes[0]} and {shapes[1]}.")
            views[number * n + rows.start : number * n + rows.stop].copy_(view)
    assert views is not None
    return views


def chunks(source: torch.Size, device: torch.device) -> list[slice]:
    """Which images to work on at a time, so that what stages hand on stays in the cache.

    Slices of a power of two, less what is left at the end, as each length is compiled by itself. All at once in code
    that is being compiled as a whole: a graph per chunk would grow with the batch.
    """
    n = source[0]
    if torch.compiler.is_compiling():
        return [slice(0, n)]
    limit = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE) // (4 * source[1:].numel())
    length = 1 << max(1, min(limit, _CHUNK_IMAGES.get(device.type, n))).bit_length() - 1
    return [slice(start, min(start + length, n)) for start in range(0, max(n, 1), length)]


def rows_of(params: Sequence[Params], rows: slice) -> list[Params]:
    """The parameters of some of the images."""
    return [{name: values[rows] for name, values in drawn.items()} for drawn in params]


def padded(images: Tensor, params: Sequence[Params]) -> tuple[Tensor, Sequence[Params]]:
    """The last image, and what was drawn for it, repeated until there are a power of two."""
    n = len(images)
    rest = (1 << max(n - 1, 0).bit_length()) - n
    if rest == 0 or n == 0:
        return images, params

    def repeat(values: Tensor) -> Tensor:
        return torch.cat([values, values[-1:].expand(rest, *values.shape[1:])])

    return repeat(images), [{name: repeat(values) for name, values in drawn.items()} for drawn in params]


def batch_of(images: Images, rows: slice) -> Tensor:
    """Some of the images as one batch; those of a list are padded by black to the largest of them."""
    if isinstance(images, Tensor):
        return images[rows]
    part = images[rows]
    height, width = (max(image.shape[axis] for image in part) for axis in (1, 2))
    return torch.stack([functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in part])
