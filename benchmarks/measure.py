"""What the benchmarks measure with: memory of torch's allocator, and the machine they ran on."""

import gc
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """The highest total of torch's CPU allocator while it runs, less what was there before."""
    run()  # what is made once is not counted
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


def setting(*names: str) -> str:
    """Machine and versions of these packages, one line."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        text = file.read()
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    packages = []
    for name in names:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} not installed")
    return (
        f"{model or platform.processor()} ({', '.join(flags)}), {torch.get_num_threads()} threads, no GPU; "
        f"{', '.join(packages)}, Python {platform.python_version()}."
    )
