"""Processes, devices and precision: what a launcher decides, checked before anything runs."""

import os
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from cl_train._errors import InputError

MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


def cores_per_process() -> int:
    """The machine's cores, shared out among its processes."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def use_all_cores() -> None:
    """On a machine without accelerator, let torch use every core: launchers leave it one thread per process."""
    if not torch.accelerator.is_available():
        torch.set_num_threads(cores_per_process())


def make_accelerator(mixed_precision: MixedPrecision = "auto") -> Accelerator:
    """An Accelerator for however this process was launched.

    Args:
        mixed_precision: "auto" is bf16 where the device computes it natively, else float32. fp16 scales the loss.

    Returns:
        Accelerator on the GPU if there is one, else on the CPU (processes then talk by gloo).

    Raises:
        InputError: The environment announces several processes that this one cannot join, or `mixed_precision` is none
            of the four.
    """
    if mixed_precision not in ("auto", "no", "bf16", "fp16"):
        raise InputError(f"`mixed_precision` must be 'auto', 'no', 'bf16' or 'fp16', got {mixed_precision!r}.")
    announced = os.environ.get("WORLD_SIZE", "1")
    if not announced.isdigit() or int(announced) < 1:
        raise InputError(f"WORLD_SIZE must be a number of processes, got {announced!r}.")
    wanted = int(announced)
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if wanted > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={wanted} is set but {', '.join(missing)} is not, so one process would run alone: "
            "start with torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    on_cpu = not torch.accelerator.is_available()
    precision = _native_precision() if mixed_precision == "auto" else mixed_precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
    if accelerator.num_processes != wanted:
        raise InputError(f"WORLD_SIZE={wanted} is set but {accelerator.num_processes} processes take part.")
    return accelerator


def describe(accelerator: Accelerator) -> str:
    """One line: how many processes, where, by which backend, in which precision, with how many threads.

    Args:
        accelerator: From `make_accelerator`.

    Returns:
        Text such as "world=1 backend=none device=cpu precision=bf16 threads=2".
    """
    backend = torch.distributed.get_backend() if accelerator.num_processes > 1 else "none"
    return (
        f"world={accelerator.num_processes} backend={backend} device={accelerator.device} "
        f"precision={accelerator.mixed_precision} threads={torch.get_num_threads()}"
    )


def _native_precision() -> str:
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "no"
    if torch.accelerator.is_available():
        return "no"
    # Without these instructions a CPU emulates bf16, which is slower than float32.
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "no"
