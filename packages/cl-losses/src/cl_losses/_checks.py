"""The arguments that several losses share, and their rules."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from cl_losses._agree import DTYPES
from cl_losses._deferred import require
from cl_losses._precision import wider

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)  # here, because the compiler of older torch cannot look inside `get_args`


def check_tensors(**tensors: Tensor) -> None:
    """Raise unless the named arguments are tensors; with None, another loss would be computed."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}.")


def check_floating(**tensors: Tensor) -> None:
    """Raise unless the named tensors are of floating point numbers and on one device."""
    names = " and ".join(f"`{name}`" for name in tensors)
    if any(tensor.dtype not in DTYPES for tensor in tensors.values()):
        found = ", ".join(str(tensor.dtype) for tensor in tensors.values())
        raise TypeError(f"{names} must hold floating point numbers, got {found}.")
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise ValueError(f"{names} must be on one device, got {', '.join(sorted(map(str, devices)))}.")


def check_rows(*, columns: str = "d", **rows: Tensor) -> None:
    """Raise unless the two named tensors are (n, d) of one shape, of floating point numbers and on one device."""
    (name_a, a), (name_b, b) = rows.items()
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] == 0:
        raise ValueError(
            f"`{name_a}` and `{name_b}` must have one shape (n, {columns}), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    check_floating(**rows)


def as_number(temperature: float) -> float:
    """Raise if `temperature` is a tensor: it would be used, and get no gradient."""
    if isinstance(temperature, Tensor):
        raise TypeError("`temperature` must be a number, got a tensor; only `info_nce_loss` has a gradient for it.")
    return float(temperature)


def check_temperature(temperature: float) -> None:
    """Raise unless `temperature` is positive; NaN is not."""
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")


def check_reduction(reduction: str) -> None:
    """Raise unless `reduction` is one of the three."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none', got {reduction!r}.")


def check_per_image(images: int, *, device: torch.device, **values: Tensor) -> None:
    """Raise unless each named tensor holds an integer for each of so many images, on the device of their rows."""
    for name, value in values.items():
        if value.ndim != 1 or len(value) != images:
            raise ValueError(f"`{name}` must have shape ({images},), one for each image, got {tuple(value.shape)}.")
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"`{name}` must hold integers, got {value.dtype}.")
        if value.device != device:
            raise ValueError(f"`{name}` must be on the same device as the rest, {device}, got {value.device}.")


def check_views(z: Tensor, other: Tensor | None, *, labels: Tensor | None, domains: Tensor | None) -> None:
    """Raise unless two tensors are views of the same images, or one is (n, d) or (views, n, d) with its labels."""
    if other is not None:
        check_rows(z_a=z, z_b=other)
        return
    if z.ndim not in (2, 3) or z.shape[-1] == 0 or (z.ndim == 3 and z.shape[0] == 0):
        raise ValueError(f"`z` must have shape (n, d) or (views, n, d) with a view or more, got {tuple(z.shape)}.")
    per_image = {name: value for name, value in (("labels", labels), ("domains", domains)) if value is not None}
    check_floating(z=z)
    check_per_image(z.shape[-2], device=z.device, **per_image)
    if labels is not None:
        check_labels(labels)


def check_labels(labels: Tensor) -> None:
    """Raise unless labels are classes or -1; on a GPU in a later call."""
    require((labels.long() >= -1).all(), "`labels` must be at least 0, or -1 for an image without label.")


def check_queries(query: Tensor, key: Tensor, negatives: Tensor | None) -> None:
    """Raise unless queries and keys are (n, d), and additional negatives, if any, (k, d)."""
    check_rows(query=query, key=key)
    if negatives is None:
        return
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        raise ValueError(f"`negatives` must have shape (k, {query.shape[1]}), got {tuple(negatives.shape)}.")
    check_floating(query=query, negatives=negatives)


def check_candidates(shares: list[int], negatives: Tensor | None, *, both: bool) -> None:
    """Raise unless every query has a candidate beside its positive, and every key if it looks for one."""
    extra = 0 if negatives is None or both else negatives.shape[0]
    if sum(shares) < 1 or sum(shares) - 1 + extra < 1:
        raise ValueError(
            f"`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got {sum(shares)}."
        )


def check_finite(norm: Tensor, *, name: str) -> None:
    """Raise unless every row of a tensor, given by their norms, (m,), is finite; on a GPU in a later call."""
    if norm.device.type == "cuda":
        require(norm.isfinite().all(), f"{name} must be finite, and so must the norms of their rows.")
    elif not math.isfinite(norm.sum().item()):
        for row in (~norm.isfinite()).nonzero()[:1, 0].tolist():
            raise ValueError(f"{name} must be finite, and so must the norms of their rows; row {row} is not.")


def check_finite_rows(**tensors: Tensor) -> None:
    """Raise unless the rows of the named tensors are finite; under torch.compile not looked for."""
    if not torch.compiler.is_compiling():  # reading a number breaks a graph
        for name, rows in tensors.items():
            norm = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=wider(rows.dtype))
            check_finite(norm, name=f"`{name}`")


def check_images(shares: list[int], *, name: str) -> None:
    """Raise unless there are at least two images on all processes together."""
    if sum(shares) < 2:
        raise ValueError(f"{name} must hold at least 2 images in all (negatives), got {sum(shares)}.")
