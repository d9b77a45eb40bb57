"""Counter-based random numbers: every draw is a function of a key, so nothing has to be stored or replayed.

The generator is SplitMix64 (Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators, 2014) with the
finaliser "variant 13" of Stafford. Two's complement int64 arithmetic wraps on every torch device, which is all the
algorithm needs; only the logical shift has to be made from the arithmetic one.
"""

import torch
from torch import Tensor


def _signed(bits: int) -> int:
    """The int64 with the bit pattern of the unsigned 64-bit `bits`."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits


_DRAW = _signed(0x9E3779B97F4A7C15)  # the golden ratio: SplitMix64's increment
# Folding steps by another odd number than drawing, so that a folded key is never one of its parent's draws.
_FOLD = _signed(0xD1342543DE82EF95)
_MUL_1 = _signed(0xBF58476D1CE4E5B9)
_MUL_2 = _signed(0x94D049BB133111EB)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MUL_1
    z = (z ^ _shift_right(z, 27)) * _MUL_2
    return z ^ _shift_right(z, 31)


def sample_keys(ids: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Random keys, one for each sample, that depend on `(seed, epoch, id)` and on nothing else.

    An image that is augmented with its key gets the same views whatever the batch it sits in, the number of
    processes or workers, and whether the run was restarted.

    Args:
        ids: Which sample each row is (its position in the data set), any integer dtype, shape (n,).
        seed: Seed of the run, 0 <= seed < 2**63.
        epoch: Pass over the data, >= 0. Another epoch gives other views.

    Returns:
        Keys, int64, shape (n,), on the device of `ids`.

    Raises:
        TypeError: `ids` is not a tensor of integers.
        ValueError: `ids` is not one-dimensional, or `seed` or `epoch` is out of range.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"`ids` must be a tensor of integers, got {type(ids).__name__}.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"`ids` must hold integers, got {ids.dtype}.")
    if ids.ndim != 1:
        raise ValueError(f"`ids` must have shape (n,), got {tuple(ids.shape)}.")
    for name, value in {"seed": seed, "epoch": epoch}.items():
        if not isinstance(value, int):
            raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"`seed` must be in [0, 2**63), got {seed}.")
    if epoch < 0:
        raise ValueError(f"`epoch` must be at least 0, got {epoch}.")
    ids = ids.long()
    run = fold_in(_mix(torch.full_like(ids, seed)), epoch)
    return _mix(run + (ids + 1) * _FOLD)


def random_keys(n: int, *, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Keys from a generator (or the device's default one), for calls that bring no keys of their own.

    Args:
        n: How many keys.
        device: Where they are needed.
        generator: Source of randomness, on `device`.

    Returns:
        Keys, int64, shape (n,).
    """
    return torch.randint(-(1 << 63), (1 << 63) - 1, (n,), device=device, generator=generator)


def check_keys(keys: Tensor, n: int) -> None:
    """Raise unless `keys` is one key for each of `n` images."""
    if not isinstance(keys, Tensor) or keys.dtype != torch.int64:
        got = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
        raise TypeError(f"`keys` must be int64, as `sample_keys` makes them, got {got}.")
    if keys.shape != (n,):
        raise ValueError(f"`keys` must have shape ({n},), one for each image, got {tuple(keys.shape)}.")


def fold_in(keys: Tensor, data: int) -> Tensor:
    """New keys for a part of the work: a view, a stage. Parts with another number draw independently.

    Args:
        keys: Keys, int64, any shape.
        data: Number of the part, >= 0.

    Returns:
        Keys, int64, shape of `keys`.

    Raises:
        ValueError: `data` < 0.
    """
    if data < 0:
        raise ValueError(f"`data` must be at least 0, got {data}.")
    return _mix(keys + _signed((data + 1) * _FOLD % (1 << 64)))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform random numbers in [0, 1), `count` for each key.

    The same key always gives the same numbers: call once for a key, or `fold_in` first.

    Args:
        keys: Keys, int64, shape (n,).
        count: Numbers per key, >= 1.

    Returns:
        float32, shape (n, count), multiples of 2**-24.
    """
    if torch.compiler.is_compiling():
        # The compiler takes a product with an `arange` for an index and computes it in 32 bits.
        states = torch.stack([keys + _signed(step * _DRAW % (1 << 64)) for step in range(1, count + 1)], dim=1)
    else:
        states = keys[:, None] + torch.arange(1, count + 1, device=keys.device) * _DRAW
    return _shift_right(_mix(states), 40).to(torch.float32) * 2.0**-24
