"""Running images through chains of stages: what to draw, and which images at a time."""

from collections.abc import Sequence
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
_CHUNK_BYTES = {"cpu": 4 << 20}
_CHUNK_BYTES_ELSEWHERE = 1 << 28


def check_batch(images: Images, sizes: Tensor | None) -> None:
    """Raise unless these are images that can be augmented.

    Raises:
        TypeError: Another type or dtype.
        ValueError: Another shape, values outside [0, 1], or `sizes` that do not fit.
    """
    if isinstance(images, Tensor):
        check_images(images)
        check_range(images)
        if sizes is not None:
            _check_sizes(sizes, images)
        return
    if sizes is not None:
        raise ValueError("`sizes` belongs to a padded batch; the images of a list know their own.")
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


def _check_sizes(sizes: Tensor, images: Tensor) -> None:
    n, _, height, width = images.shape
    if not isinstance(sizes, Tensor):
        raise TypeError(f"`sizes` must be a tensor, got {type(sizes).__name__}.")
    if sizes.dtype != torch.int64 or sizes.shape != (n, 2):
        raise ValueError(f"`sizes` must be int64 ({n}, 2), got {sizes.dtype} {tuple(sizes.shape)}.")
    if sizes.device.type == "cpu" and n > 0:
        least, most = sizes.amin(0).tolist(), sizes.amax(0).tolist()
        if min(least) < 2 or most[0] > height or most[1] > width:
            raise ValueError(f"`sizes` must lie in 2..{height} and 2..{width}, got from {least} to {most}.")


def shape_and_sizes(images: Images, sizes: Tensor | None) -> tuple[torch.Size, Tensor | None]:
    """Shape of the batch, padded if need be, and the sizes within it."""
    if isinstance(images, Tensor):
        return images.shape, sizes
    sizes = torch.tensor([image.shape[1:] for image in images])
    return torch.Size([len(images), images[0].shape[0], *sizes.amax(0).tolist()]), sizes


def draw_chain(
    stages: Sequence[Stage], keys: Tensor, shape: torch.Size, *, sizes: Tensor | None = None, first: int = 0
) -> list[Params]:
    """What each stage draws for a batch of this shape; the stage at place s of its view from `fold_in(keys, s)`."""
    drawn = []
    for place, stage in enumerate(stages, first):
        drawn.append(stage.draw(fold_in(keys, place), shape, sizes))
        sizes = None  # the first stage makes all images equal
        if place - first + 1 < len(stages):
            shape = stage.shape_after(shape)
    return drawn


def replay_chain(stages: Sequence[Stage], images: Tensor, params: Sequence[Params]) -> Tensor:
    """One stage after the other; `images` are left as they are. Half types are worked on as float32."""
    view = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
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
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"`mean` and `std` go together, got {self.mean} and {self.std}.")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError(f"`mean` and `std` must be equally long, got {self.mean} and {self.std}.")
            if min(self.std) <= 0:
                raise ValueError(f"`std` must be positive, got {self.std}.")
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


class Write(Protocol):
    """What makes the views of one chunk by one chain."""

    def __call__(
        self, stages: Sequence[Stage], images: Tensor, params: Sequence[Params], finish: Finish, out: Tensor
    ) -> None: ...


def write_views(stages: Sequence[Stage], images: Tensor, params: Sequence[Params], finish: Finish, out: Tensor) -> None:
    """Write the views of these images to `out`."""
    out.copy_(finish.apply(replay_chain(stages, images, params)))


def run(
    chains: Sequence[Sequence[Stage]],
    sources: Sequence[Images],
    params: Sequence[Sequence[Params]],
    finish: Finish,
    write: Write,
) -> Tensor:
    """Views of all chains, first those of the first: (chains n, c, h, w).

    Args:
        chains: Stages of each view.
        sources: What each chain starts from, n images.
        params: What each stage of each chain has drawn.
        finish: What is done last.
        write: `write_views`, or that compiled.

    Returns:
        Views, dtype by `finish`, or float32 for uint8, or as the images.
    """
    n = len(sources[0])
    first = sources[0][0] if n else sources[0]
    assert isinstance(first, Tensor)
    shapes = [view_shape(stages, source) for stages, source in zip(chains, sources, strict=True)]
    if len(set(shapes)) > 1:
        raise ValueError(f"the views must agree in shape, got {[tuple(shape) for shape in shapes]}.")
    dtype = finish.dtype or (torch.float32 if first.dtype == torch.uint8 else first.dtype)
    views = torch.empty(
        [len(chains) * n, *shapes[0][1:]], dtype=dtype, device=first.device, memory_format=finish.memory_format
    )
    if first.device.type == "cpu" and not torch.compiler.is_compiling():
        keep_freed_memory()
    for rows in chunks(shape_and_sizes(sources[0], None)[0], shapes[0], first.device):
        for number, (stages, source, drawn) in enumerate(zip(chains, sources, params, strict=True)):
            out = views[number * n + rows.start : number * n + rows.stop]
            write(stages, batch_of(source, rows), rows_of(drawn, rows), finish, out)
    return views


def view_shape(stages: Sequence[Stage], images: Images) -> torch.Size:
    """Shape of the views that the stages make of these images."""
    shape, _ = shape_and_sizes(images, None)
    for stage in stages:
        shape = stage.shape_after(shape)
    return shape


def chunks(source: torch.Size, view: torch.Size, device: torch.device) -> list[slice]:
    """Which images to work on at a time, so that what stages hand on stays in the cache: slices of one length or two.

    All at once in code that is being compiled: a graph per chunk would grow with the batch.
    """
    n = source[0]
    limit = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE)
    most = max(1, limit // (4 * max(source[1:].numel(), view[1:].numel())))
    count = 1 if torch.compiler.is_compiling() else max(1, -(-n // most))
    length = max(1, -(-n // count))
    return [slice(start, min(start + length, n)) for start in range(0, max(n, 1), length)]


def rows_of(params: Sequence[Params], rows: slice) -> list[Params]:
    """The parameters of some of the images."""
    return [{name: values[rows] for name, values in drawn.items()} for drawn in params]


def batch_of(images: Images, rows: slice) -> Tensor:
    """Some of the images as one batch; those of a list are padded by black to the largest of them."""
    if isinstance(images, Tensor):
        return images[rows]
    part = images[rows]
    height, width = (max(image.shape[axis] for image in part) for axis in (1, 2))
    return torch.stack([functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in part])
