"""Speed, passes and memory of the views, beside their peers, in one run.

    hatch run bench:augment                  # the tables of augment.md: about 10 minutes on 2 cores
    hatch run bench:augment --sizes 32 --seconds 30

Run it alone on the machine. All contenders make one SimCLR view of each image of a batch in memory: 512 images of 32 px
(strength 0.5, no blur) and 64 of 256 px to 224 px (strength 1, blur with probability 0.5), with the numbers of the
paper. What they do differs where the peer does: lightly and torchvision resize bilinearly with antialiasing and Kornia
bilinearly without, and Kornia draws one order of the jitter for a batch. cl-augment is timed with the bicubic,
antialiased crop that is its default.

Times are medians over rounds in which each contender runs once, in turn; ratios are medians of the ratios of a round.
A pass is one reading or writing of all views as float32, counted over the operators that torch dispatches, or over the
buffers that the compiler's kernels read and write.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import kornia.augmentation as kornia_augmentation
import torch
from cl_augment import SimCLRAugment, sample_keys
from measure import peak_bytes, setting
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

Run = Callable[[], object]
CASES = {32: (512, 32, 0.5), 224: (64, 256, 1.0)}  # size of the view: images in a batch, their side, strength


# Contenders


class Pictures(Dataset[Tensor]):
    """PIL images and lightly's view of each, for the workers of a loader."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def lightly_in_two_workers(images: Tensor, size: int, strength: float) -> Run:
    """All images once through lightly's transform of PIL images, by two processes that are already there."""
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    blur = 0.5 if size > 32 else 0.0
    transform = SimCLRViewTransform(input_size=size, cj_strength=strength, gaussian_blur=blur, normalize=None)
    data = Pictures(images, transform)
    # eight batches for two workers: when one has nothing left to do, the other is nearly done, too
    loader = DataLoader(data, batch_size=max(1, len(images) // 8), num_workers=2, persistent_workers=True)
    return lambda: [None for _ in loader]


def kornia_chain(size: int, strength: float) -> nn.Module:
    """Stock Kornia, the numbers of the paper."""
    s = strength
    stages = [
        kornia_augmentation.RandomResizedCrop((size, size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
        kornia_augmentation.RandomHorizontalFlip(p=0.5),
        kornia_augmentation.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
        kornia_augmentation.RandomGrayscale(p=0.2),
    ]
    if size > 32:
        taps = 2 * (size // 20) + 1
        stages.append(kornia_augmentation.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5))
    return kornia_augmentation.AugmentationSequential(*stages, data_keys=["input"])


def torchvision_chain(size: int, strength: float) -> v2.Compose:
    """For one image by torchvision, the numbers of the paper, on a uint8 tensor, which is its quickest way."""
    s = strength
    stages = [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8),
        v2.RandomGrayscale(0.2),
    ]
    if size > 32:
        stages.append(v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))], p=0.5))
    return v2.Compose([*stages, v2.ToDtype(torch.float32, scale=True)])


def images_of(size: int) -> Tensor:
    """A batch of smooth noise, uint8."""
    n, side, _ = CASES[size]
    coarse = torch.rand(n, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (255 * smooth.clamp(0, 1)).to(torch.uint8)


def contenders(size: int) -> dict[str, tuple[Run, int]]:
    """Name to a run and how many views it makes."""
    images, strength = images_of(size), CASES[size][2]
    n = len(images)
    chain, epoch = torchvision_chain(size, strength), itertools.count()
    stock = kornia_chain(size, strength)

    def ours(augment: Callable[[Tensor, Tensor], object]) -> Run:
        return lambda: augment(images, sample_keys(torch.arange(n), seed=0, epoch=next(epoch)))

    eager = SimCLRAugment(size, strength=strength)
    compiled = SimCLRAugment(size, strength=strength)
    compiled.compile()
    return {
        "cl-augment": (ours(eager), 2 * n),
        "cl-augment, compiled": (ours(compiled), 2 * n),
        "Kornia": (lambda: stock(images / 255), n),
        "torchvision": (lambda: torch.stack([chain(image) for image in images]), n),
        "lightly, 2 workers": (lightly_in_two_workers(images.repeat(4, 1, 1, 1), size, strength), 4 * n),
    }


# Time


def interleaved(runs: dict[str, tuple[Run, int]], *, seconds: float) -> dict[str, list[float]]:
    """Seconds per view of each run in every round; as many rounds as fit, after two that do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    began, rounds = time.perf_counter(), 0
    while rounds < 7 or time.perf_counter() - began < seconds:
        for name, (run, views) in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) / views)
        rounds += 1
        if rounds == 2:
            began = time.perf_counter()
    return {name: values[2:] for name, values in times.items()}


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    """How many times longer `name` takes than `to`: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


# Passes, operators and memory: the same on every machine


class Passes(TorchDispatchMode):
    """Bytes that operators read and write, and how many operators there are; views of tensors cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if func.is_view or name.startswith(("aten::empty", "aten::new_empty")):
            return result
        touched = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if name.startswith("aten::index_select"):
            touched = [result, result]  # of what it selects from, these are read
        elif name.startswith("aten::index_copy_"):
            touched = [args[3], args[3]]  # of what it copies to, these are written
        self.bytes += sum(t.element_size() * reached(t) for t in touched)
        self.operators += 1
        return result


def reached(tensor: Tensor) -> int:
    """How many different numbers a tensor shows: one that is expanded is read where it is."""
    return prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)


def eager_passes(run: Run, images: int, size: int) -> tuple[float, int]:
    """Passes over one view as float32, and operators of a call."""
    with Passes() as counted:
        run()
    return counted.bytes / (images * 3 * size * size * 4), counted.operators


def compiled_passes(size: int) -> float:
    """Passes of the compiled chain, by what Inductor says its kernels read and write."""
    from torch._inductor import config, metrics
    from torch._inductor.compile_fx import inductor_metrics_log

    torch.compiler.reset()
    metrics.reset()
    inductor_metrics_log.setLevel("INFO")  # which makes it count
    inductor_metrics_log.propagate = False
    images, strength = images_of(size)[:8], CASES[size][2]
    augment = SimCLRAugment(size, strength=strength)
    augment.compile()
    with config.patch({"fx_graph_cache": False}):
        augment(images, sample_keys(torch.arange(8), seed=0, epoch=0))
    return metrics.num_bytes_accessed / (8 * 3 * size * size * 4)


def counts(size: int) -> list[str]:
    """Rows of the table of passes: name, passes, operators of a call, peak memory beyond the images."""
    images, strength = images_of(size), CASES[size][2]
    keys = sample_keys(torch.arange(len(images)), seed=0, epoch=0)
    augment, stock = SimCLRAugment(size, strength=strength), kornia_chain(size, strength)
    rows = []
    runs: dict[str, tuple[Callable[[Tensor], object], int]] = {
        "cl-augment": (lambda x: augment(x, keys[: len(x)]), 2),
        "Kornia": (lambda x: stock(x / 255), 1),
    }
    for name, (run, views) in runs.items():
        whole, half = partial(run, images), partial(run, images[: len(images) // 2])
        passes, operators = eager_passes(whole, views * len(images), size)
        _, of_half = eager_passes(half, views * len(images), size)
        output = views * len(images) * 3 * size * size * 4
        extra = peak_bytes(whole) / output - 1
        rows.append(f"| {size} | {name} | {passes:.0f} | {operators:,} ({of_half:,}) | {extra:.2f} |")
    rows.append(f"| {size} | cl-augment, compiled | {compiled_passes(size):.1f} | | |")
    return rows


def main() -> None:
    """Print the tables, and write them to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seconds", type=float, default=90, help="for the rounds of a size, at least seven rounds")
    parser.add_argument("--out", help="markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    packages = ("cl-augment", "torch", "kornia", "torchvision", "lightly", "pillow")
    parts = [f"# Views, beside their peers\n\n`hatch run bench:augment`. {setting(*packages)}"]
    for size in arguments.sizes:
        n, side, strength = CASES[size]
        times = interleaved(contenders(size), seconds=arguments.seconds)
        lines = [f"## {n} images of {side} px to {size} px, strength {strength}\n"]
        lines += ["| | views/s | cl-augment is quicker | cl-augment, compiled, is quicker |", "|---|---:|---:|---:|"]
        for name, values in times.items():
            quicker = " | ".join(f"{ratio(times, name, ours):.2f}" for ours in list(times)[:2])
            lines.append(f"| {name} | {1 / statistics.median(values):,.0f} | {quicker} |")
        lines.append(f"\n{len(times['Kornia'])} rounds.")
        parts.append("\n".join(lines))
        print(parts[-1], flush=True)
    lines = ["## Passes over a view, operators, memory\n"]
    lines += [
        "| px | | passes | operators (of half the batch) | peak beyond the output, in outputs |",
        "|---:|---|---:|---:|---:|",
    ]
    parts.append("\n".join([*lines, *(row for size in arguments.sizes for row in counts(size))]))
    print(parts[-1])
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
