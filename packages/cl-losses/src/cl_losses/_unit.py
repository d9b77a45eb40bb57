"""Rows on the unit sphere, and gradients back from there."""

import torch
from torch import Tensor

from cl_losses._tiles import cuts

# torch.nn.functional.normalize's floor. The authors' TensorFlow code has 1e-6: only rows shorter than that differ.
NORM_FLOOR = 1e-12
# What is computed on the way is small next to the rows.
NUMBERS_AT_A_TIME = 2**19


def unit_rows(*parts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The parts' rows, one part after the other, divided by their norms: (m, d), and the norms, (m,), of `dtype`."""
    unit = parts[0].new_empty(sum(part.shape[0] for part in parts), parts[0].shape[1], dtype=dtype)
    norms = []
    for part, out in zip(parts, unit.split([part.shape[0] for part in parts]), strict=True):
        rows = part if part.dtype == dtype else out.copy_(part)  # no third copy of rows that have to be converted
        norms.append(torch.linalg.vector_norm(rows, dim=1))
        torch.div(rows, norms[-1].clamp_min(NORM_FLOOR).unsqueeze(1), out=out)
    return unit, torch.cat(norms)


def through_norm_(grad: Tensor, *, unit: Tensor, norm: Tensor) -> Tensor:
    """Turn the gradient of unit rows into that of the rows before `unit_rows`, in place.

    With u = z / |z| that is (grad - u (u . grad)) / |z|. A row below the floor was divided by a constant, so it has
    nothing to project out.
    """
    for at in cuts(0, grad.shape[0], max(1, NUMBERS_AT_A_TIME // grad.shape[1])):
        u, part, length = unit[at].to(grad.dtype), grad[at], norm[at].to(grad.dtype)
        along = (u * part).sum(1).masked_fill_(length < NORM_FLOOR, 0)
        part.addcmul_(u, along.unsqueeze(1), value=-1).div_(length.clamp_min(NORM_FLOOR).unsqueeze(1))
    return grad
