"""The arguments that several losses share, and their rules."""

from torch import Tensor


def check_rows(**rows: Tensor) -> None:
    """Raise unless the two named tensors are (n, d) of one shape and of floating point numbers."""
    (name_a, a), (name_b, b) = rows.items()
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"`{name_a}` and `{name_b}` must have one shape (n, d), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"`{name_a}` and `{name_b}` must hold floating point numbers, got {a.dtype} and {b.dtype}.")


def check_temperature(temperature: float) -> None:
    """Raise unless `temperature` is positive; NaN is not."""
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
