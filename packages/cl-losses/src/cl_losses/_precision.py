"""The precision in which losses are computed."""

import torch
from torch import Tensor


def float32_or_wider(z: Tensor) -> Tensor:
    """float64 stays as it is, everything else becomes float32: a half-precision cosine is off by 5e-4 / temperature."""
    return z if z.dtype == torch.float64 else z.float()
