"""What every stage accepts: batches of images, uint8 or float in [0, 1], and the checks of that."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_VIEW = 8  # pixels; less than this is a slip of arguments, not a view


def check_size(size: int) -> None:
    """Raise unless `size` is a side of a view in pixels."""
    if not isinstance(size, int):
        raise TypeError(f"`size` must be a whole number of pixels, got {size!r}.")
    if size < SMALLEST_VIEW:
        raise ValueError(f"`size` must be at least {SMALLEST_VIEW} pixels, got {size}.")


def check_probability(p: float, *, name: str = "p") -> None:
    """Raise unless `p` is a probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"`{name}` is a probability in [0, 1], got {p}.")


def check_images(images: Tensor) -> None:
    """Raise unless `images` is a batch that can be augmented, by what is known without reading it.

    Raises:
        TypeError: It is not a tensor of uint8 or floating point numbers.
        ValueError: Another number of dimensions, or images below 2 x 2 pixels.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"`images` must be a tensor, got {type(images).__name__}.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"`images` must be uint8 in 0..255 or float in [0, 1], got {images.dtype}.")
    if images.ndim != 4:
        raise ValueError(f"`images` must have shape (n, c, h, w), got {tuple(images.shape)}.")
    if images.shape[1] < 1 or min(images.shape[2:]) < 2:
        raise ValueError(f"`images` must have a channel and at least 2 x 2 pixels, got shape {tuple(images.shape)}.")


def as_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 as float32 in [0, 1]; floating point images are returned as they are."""
    check_images(images)
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images


class _Copied(NamedTuple):
    """Least and greatest value of a batch on their way to the host."""

    extremes: Tensor
    arrived: torch.cuda.Event


_on_the_way: deque[_Copied] = deque()


def check_range(images: Tensor) -> None:
    """Raise ValueError if floating point images leave [0, 1] or hold NaN; costs one reading of them.

    On the CPU at once. A GPU would make the host wait for all that is queued, so its answer is copied while work goes
    on and raised by a later call. Compiled code does not check.
    """
    if torch.compiler.is_compiling():
        return
    on_gpu = images.device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():  # a graph that is replayed has no later call
        return
    _check_arrived()
    if not images.is_floating_point() or images.numel() == 0:
        return
    extremes = torch.stack(images.detach().aminmax())
    if not on_gpu:
        _check_extremes(extremes, "")
        return
    with torch.cuda.device(images.device):  # an event is of the stream of the current device
        copy = torch.empty_like(extremes, device="cpu", pin_memory=True).copy_(extremes, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
    _on_the_way.append(_Copied(copy, arrived))


def _check_arrived() -> None:
    while True:
        try:  # another thread may take it in between
            copied = _on_the_way.popleft()
        except IndexError:
            return
        if not copied.arrived.query():
            _on_the_way.appendleft(copied)
            return
        _check_extremes(copied.extremes, "In an earlier call on a GPU: ")


def _check_extremes(extremes: Tensor, when: str) -> None:
    low, high = extremes.tolist()
    if low != low:  # the least of numbers with a NaN among them is NaN
        raise ValueError(f"{when}`images` must lie in [0, 1], got NaN among them.")
    if low < 0 or high > 1:
        hint = " Bytes are scaled by themselves: pass uint8." if high > 2 else ""
        raise ValueError(f"{when}`images` must lie in [0, 1], got values from {low:.6g} to {high:.6g}.{hint}")
