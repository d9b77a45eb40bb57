"""What BatchNorm sees, and when its running statistics move."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cl_models import sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Literal["local", "sync", "global"]


def share_statistics(module: nn.Module, *, processes: int) -> None:
    """Let BatchNorm see the rows of all processes, in place; parameters and buffers stay the same objects."""
    if processes > 1:
        sync_batchnorm(module)


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """The layers whose statistics are the batch's, in order of registration; those of a frozen part are not."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]


@contextmanager
def running_statistics_held(module: nn.Module) -> Iterator[None]:
    """Within it BatchNorm normalises as in training but records nothing."""
    layers = [layer for layer in batchnorms(module) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False  # what a forward asks before it moves them
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
