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
import gc
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import cl_augment
import kornia.augmentation as kornia_augmentation
import torch
from cl_augment import SimCLRAugment, sample_keys
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
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
    """torchvision for one image, the numbers of the paper, on a uint8 tensor, which is its quickest way."""
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
    compiled = torch.compile(SimCLRAugment(size, strength=strength), fullgraph=True)
    return {
        "cl-augment": (ours(eager), 2 * n),
        #"cl-augment, compiled": (ours(compiled), 2 * n),
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


if __name__ == "__main__":
    import sys
    torch.set_num_threads(2)
    for size in [int(a) for a in sys.argv[1:]] or CASES:
        times = interleaved(contenders(size), seconds=30)
        for name, values in times.items():
            print(size, name, f"{1/statistics.median(values):.0f} views/s", f"{ratio(times,name,'cl-augment'):.2f}", flush=True)
