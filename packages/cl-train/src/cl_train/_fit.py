"""How many images go through a network at once on this machine."""

import gc
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from cl_train._datasets import readable
from cl_train._embeddings import fields_of
from cl_train._errors import InputError
from cl_train._launch import processes_here
from cl_train._method import Method
from cl_train._norms import running_statistics_held
from cl_train._plan import Plan

_SHARE = 0.75  # of the free memory; the rest is for the allocator's gaps and for what the loss makes
_TRIAL = 4  # images
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def fitting_chunk(method: Method, plan: Plan, accelerator: Accelerator, *, skip_unreadable: bool) -> int:
    """Images of a process whose forward and backward fit into three quarters of its free memory, at most its share.

    Measured with 4 and with 8 images, so it takes as long as three such steps. The same on all processes.

    Raises:
        InputError: Not even one image fits.
    """
    device = accelerator.device
    method.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    some = readable(plan.dataset, 2 * _TRIAL) if skip_unreadable else range(len(plan.dataset))
    ids = list(islice(cycle(some), 2 * _TRIAL))
    small, large = (_peak_of(method, plan, accelerator, ids[:n]) for n in (_TRIAL, 2 * _TRIAL))
    per_image = max(1, (large - small) // _TRIAL)
    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    # beside the images: gradients, momentum, and what a step that is taken back needs of both and of the weights
    room = _SHARE * _free(device) - max(0, small - _TRIAL * per_image) - 5 * weights
    own = torch.tensor([min(int(room // per_image), plan.share)], device=device)
    found = int(accelerator.gather(own).min())
    if found < 1:
        raise InputError(
            f"`chunk_size` must be at least 1, but one image needs {per_image / 1e6:.0f} MB and "
            f"{max(room, 0) / 1e6:.0f} MB are left for images: take a narrower network or smaller views."
        )
    return found


def _peak_of(method: Method, plan: Plan, accelerator: Accelerator, ids: list[int]) -> int:
    """Bytes that a forward and backward of these images takes at most."""
    keys = method.keys(torch.tensor(ids), seed=0, epoch=0)
    cuts = [
        method.cut(plan.dataset.read(i)[None].to(accelerator.device), key[None])
        for i, key in zip(ids, keys.to(accelerator.device), strict=True)
    ]
    joined = torch.cat(cuts) if isinstance(cuts[0], torch.Tensor) else tuple(map(torch.cat, zip(*cuts, strict=True)))

    def step() -> None:
        with torch.no_grad():
            views = method.views(joined, keys.to(accelerator.device)).contiguous(memory_format=torch.channels_last)
        with accelerator.autocast(), running_statistics_held(method):
            fields = [field for field in fields_of(method(views)) if field is not None and field.requires_grad]
        torch.autograd.backward([field.float().sum() for field in fields])

    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        step()  # what is made once is not counted
        peak = _cuda_peak(step, accelerator.device) if accelerator.device.type == "cuda" else _cpu_peak(step)
    method.zero_grad()
    return peak


def _cuda_peak(step: Callable[[], None], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(step: Callable[[], None]) -> int:
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


def _free(device: torch.device) -> int:
    """Bytes that this process may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    for limit, used in _CONTAINER:  # a container's own limit, by the kernel's newer and older files
        if Path(limit).is_file() and Path(limit).read_text().strip().isdigit():
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return free // processes_here()
