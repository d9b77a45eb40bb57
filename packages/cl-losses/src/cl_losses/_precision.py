"""The precision in which losses are computed."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_or_wider(z: Tensor) -> Tensor:
    """float64 stays as it is, everything else becomes float32: a half-precision cosine is off by 5e-4 / temperature."""
    return z.to(wider(z.dtype))


def wider(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if one of them is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def widest(like: Tensor) -> torch.dtype:
    """The dtype of what there is one of for each row, and of sums: float64, where the device of `like` has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on the device of `like` keep the dtype of their inputs."""
    kind = like.device.type
    # Entering autocast to switch it off takes longer than the losses of a small batch; most often it is off.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
