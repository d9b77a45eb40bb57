"""Processes, devices and precision: what a launcher decides, checked before anything runs."""

import importlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from cl_train._errors import InputError

T = TypeVar("T")
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]


def cores_per_process() -> int:
    """The machine's cores, shared out among its processes."""
    # of those that this process may use: a scheduler or container often grants fewer than the machine has
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // processes_here())


def processes_here() -> int:
    """Processes of the run on this machine."""
    return _count_of("LOCAL_WORLD_SIZE")


def _count_of(name: str) -> int:
    """A number of processes from the environment, 1 where it is not set."""
    value = os.environ.get(name, "1")
    if not value.isdigit() or int(value) < 1:
        raise InputError(f"{name} must be a number of processes, got {value!r}.")
    return int(value)


def use_all_cores() -> None:
    """On a machine without accelerator, let torch use every core: launchers leave it one thread per process."""
    if not torch.accelerator.is_available():
        torch.set_num_threads(cores_per_process())


def make_accelerator(mixed_precision: MixedPrecision = "auto") -> Accelerator:
    """An Accelerator for however this process was launched.

    Args:
        mixed_precision: "auto" is what this process already runs in, or else bf16 where the device computes it
            natively, or else float32. fp16 scales the loss.

    Returns:
        Accelerator on the GPU if there is one, else on the CPU (processes then talk by gloo).

    Raises:
        InputError: The environment announces several processes that this one cannot join, it configures what is not
            supported, or `mixed_precision` is none of the four or fp16 without CUDA.
    """
    if mixed_precision not in ("auto", "no", "bf16", "fp16"):
        raise InputError(f"`mixed_precision` must be 'auto', 'no', 'bf16' or 'fp16', got {mixed_precision!r}.")
    wanted = _count_of("WORLD_SIZE")
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if wanted > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={wanted} is set but {', '.join(missing)} is not, so one process would run alone: "
            "start with torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    on_cpu = not torch.accelerator.is_available()
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise InputError("`mixed_precision` 'fp16' needs a CUDA device (its loss scaling does), take 'bf16' or 'no'.")
    # Accelerate has one precision per process.
    running = AcceleratorState().mixed_precision if is_initialized() else None
    if mixed_precision == "auto":
        precision = running or _native_precision()
    elif running is not None and running != mixed_precision:
        raise InputError(
            f"`mixed_precision` is {running!r} in this process since its first use, got {mixed_precision!r}."
        )
    else:
        precision = mixed_precision
    if wanted > 1:
        # DDP and optimisers import this one, and default arguments of what it imports (`group=group.WORLD`) keep a
        # process group that exists by then for ever: the group's threads outlive end_training and, now and then,
        # abort the process as Python ends (torch 2.15). Imported before there is a group, it keeps none. It takes
        # seconds, so not above.
        importlib.import_module("torch._dynamo")
    # half an hour, as gloo's default: the main process may have a million files to check while the others wait
    timeout = InitProcessGroupKwargs(timeout=timedelta(minutes=30))
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision, kwargs_handlers=[timeout])
    check_accelerator(accelerator)
    if accelerator.num_processes != wanted:
        raise InputError(f"WORLD_SIZE={wanted} is set but {accelerator.num_processes} processes take part.")
    return accelerator


def on_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What a function returns on the main process, on all; what it refuses there, all refuse.

    Args:
        accelerator: The processes.
        call: Called on the main process only; its result is pickled for the others.

    Raises:
        InputError: The call raised one, or an OSError.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer = [call(), None]
        except (InputError, OSError) as error:
            answer = [None, str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise where Accelerate was told, perhaps by its environment or a forgotten file, to do what the loop does not.

    Raises:
        InputError: Gradient accumulation, which would scale the loss, or FSDP, DeepSpeed and the like.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            f"gradient accumulation is set to {accelerator.gradient_accumulation_steps} steps in Accelerate's "
            "configuration; it adds no negatives and must be 1."
        )
    if accelerator.distributed_type.value not in ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU"):
        raise InputError(f"Accelerate is configured for {accelerator.distributed_type.value}, only DDP is supported.")


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
