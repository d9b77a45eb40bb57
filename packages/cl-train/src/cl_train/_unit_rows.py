"""Features as pictures of them take them: checked, and of length 1."""

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._errors import InputError


def unit_rows(features: Tensor, *, least: int) -> Tensor:
    """Features on the CPU, each row divided by its length; rows of zeros stay.

    Args:
        features: Shape (n, d).
        least: Smallest n.

    Returns:
        Float32, (n, d).

    Raises:
        InputError: The shape is another, or a number is NaN or infinite.
    """
    if features.ndim != 2 or len(features) < least or features.shape[1] == 0:
        raise InputError(
            f"`features` must have shape (n, d) with n >= {least} and d >= 1, got {tuple(features.shape)}."
        )
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        raise InputError(f"`features` must be finite, {bad} of {len(features)} rows hold NaN or infinity.")
    return functional.normalize(features.detach().float().cpu(), dim=1)
