"""How far a loss may be from its twin in float64, and random numbers to compare them on."""

import torch
from torch import Tensor


def value_tolerance(value: Tensor, *, temperature: float, dtype: torch.dtype) -> Tensor:
    """In float32 a cosine is off by about 1e-7, a loss by 1e-7 / temperature and the rounding of its sums."""
    unit = 1.0 if dtype == torch.float32 else 1e-8  # of float64
    return unit * (2e-6 * value.abs().clamp_min(1) + 1e-7 / temperature)


def gradient_tolerance(dtype: torch.dtype) -> float:
    """Of 2 / (M temperature |z|), the most that M rows can pull at a row if each pulls like one other."""
    return 2e-6 if dtype == torch.float32 else 1e-12


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same numbers in every dtype, but for rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
