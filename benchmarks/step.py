"""What a training step costs beside the encoder, and the whole loop beside lightly's.

    hatch run bench:step --data DIR      # DIR/train.parquet of CIFAR-10; alone on the machine

Same network (ResNet-18 with a quarter of the channels, stem for 32 px, head of two layers), images, batch and precision
in every arm. "encoder" is forward and backward of network and head on views that are there already: what no loop can
save. lightly's arms are its SimCLR example: PIL transform, in the loader's workers or in the loop, its loss, SGD.

A step of the others takes its turn after each step of ours, so that what else the machine does meets all alike. Figures
are medians over steps; shares and ratios are against the encoder's steps between. Only lightly with workers, which work
on while others have their turn, runs in blocks of steps.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_models import ProjectionHead, resnet18
from cl_train import LARS, ArrayDataset, SimCLR, lars_groups, load_cifar10, pretrain
from lightly.loss import NTXentLoss as LightlyLoss
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.utils.lars import LARS as LightlyLARS
from measure import setting
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

SIZE, WIDTH = 32, 0.25


def network() -> tuple[nn.Module, nn.Module]:
    """Encoder and head, the same weights in every arm."""
    torch.manual_seed(0)
    encoder = resnet18(width=WIDTH, stem="cifar")
    return encoder, ProjectionHead(encoder.feature_dim, encoder.feature_dim, 128)


class EncoderAlone:
    """A step of what no loop can save: forward and backward of as many views."""

    def __init__(self, batch: int, precision: torch.dtype) -> None:
        self.model = nn.Sequential(*network()).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.views = torch.rand(2 * batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        self.slope, self.precision = torch.randn(2 * batch, 128), precision

    def __call__(self) -> None:
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            projections = self.model(self.views)
        projections.float().backward(self.slope)
        self.model.zero_grad()


class Lightly:
    """A step of lightly's example: PIL transform, two forwards, its loss, SGD."""

    def __init__(self, data: ArrayDataset, *, batch: int, precision: torch.dtype, workers: int) -> None:
        encoder, head = network()
        self.model = nn.Sequential(encoder, head).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06)
        self.loss, self.precision = LightlyLoss(temperature=0.5), precision
        loader = DataLoader(
            Pictures(data),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        self.batches = chain.from_iterable(iter(lambda: iter(loader), None))

    def __call__(self) -> None:
        views = next(self.batches)
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            z_a, z_b = (self.model(view.contiguous(memory_format=torch.channels_last)) for view in views)
            loss = self.loss(z_a, z_b)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Pictures(Dataset[Any]):
    """PIL images and lightly's views of them."""

    def __init__(self, data: ArrayDataset) -> None:
        assert data.images is not None
        self.pictures = [Image.fromarray(image) for image in data.images.permute(0, 2, 3, 1).numpy()]
        self.transform = SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.pictures[index])


class Interleaved(SimCLR):
    """SimCLR that lets others take a step after each of its own, and times them all.

    A step of ours is from the end of the others' to the next optimiser step: log, guard and data are in it.
    """

    def __init__(self, others: dict[str, Callable[[], None]], name: str) -> None:
        super().__init__(*network(), SimCLRAugment(SIZE, strength=0.5, blur=False), NTXentLoss(temperature=0.5))
        self.others, self.name, self.since = others, name, time.perf_counter()
        self.seconds: dict[str, list[float]] = {each: [] for each in [name, *others]}

    def after_step(self, step: int, total_steps: int) -> None:
        self.seconds[self.name].append(time.perf_counter() - self.since)
        turns = list(self.others.items())
        for name, other in turns if len(self.seconds[self.name]) % 2 else reversed(turns):
            since = time.perf_counter()
            other()
            self.seconds[name].append(time.perf_counter() - since)
        self.since = time.perf_counter()


def measured(
    data: ArrayDataset, others: dict[str, Callable[[], None]], name: str, *, batch: int, steps: int, **settings: Any
) -> dict[str, list[float]]:
    """Seconds of each step of `pretrain` and of the others, which take turns; without the first tenth."""
    method = Interleaved(others, name)
    with tempfile.TemporaryDirectory() as out:
        pretrain(
            method,
            data,
            epochs=1000,
            batch_size=batch,
            out=out,
            max_steps=steps,
            log_every=10,
            progress=False,
            **settings,
        )
    return {each: found[max(2, steps // 10) :] for each, found in method.seconds.items()}


def mean_of(step: Callable[[], None], steps: int) -> float:
    """Seconds of a step, over several, as workers go on between them; not counting the first."""
    step()
    since = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - since) / steps


class Counting(TorchDispatchMode):
    """Counts operations, and those that make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


VIEWS_ONLY = ("detach", "unbind", "alias", "view", "select", "as_strided", "split", "unsqueeze", "lift_fresh")


def count_lars(make: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[int, int, int]:
    """Operations of a step on ResNet-50, those of them that compute something, and those that wait."""
    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    optimizer = make(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    with Counting() as mode:
        optimizer.step()
    total = sum(mode.found.values())
    views = sum(count for name, count in mode.found.items() if name.split(".")[1] in VIEWS_ONLY)
    waits = sum(count for name, count in mode.found.items() if "_local_scalar_dense" in name or "nonzero" in name)
    return total, total - views, waits


def lightly_lars(model: nn.Module) -> torch.optim.Optimizer:
    """With the same two groups."""
    first, second = lars_groups(model)
    return LightlyLARS(
        [{"params": first["params"], "weight_decay": 1e-6}, {"params": second["params"], "weight_decay": 0.0}],
        lr=0.3,
        momentum=0.9,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10; without it: noise")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.data is None:
        images = torch.randint(256, (4096, 3, SIZE, SIZE), dtype=torch.uint8)
        data = ArrayDataset(images)
    else:
        data = ArrayDataset(load_cifar10(arguments.data)[0].images[:10_000])  # type: ignore[index]
    precision = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    batch, steps = arguments.batch, arguments.steps
    others: dict[str, Callable[[], None]] = {
        "encoder": EncoderAlone(batch, precision),
        "lightly, workers in the loop": Lightly(data, batch=batch, precision=precision, workers=0),
    }
    mixed = "no" if precision == torch.float32 else "bf16"
    arms: dict[str, tuple[float, float]] = {}  # seconds of a step, and of an encoder's beside it
    for name, part in (("ours", "no"), ("ours, compiled views", "views"), ("ours, compiled", "all")):
        found = measured(data, others, name, batch=batch, steps=steps, mixed_precision=mixed, compile=part)
        middle = {each: median(seconds) for each, seconds in found.items()}
        arms |= {each: (seconds, middle["encoder"]) for each, seconds in middle.items()}
    encoder, loader = others["encoder"], Lightly(data, batch=batch, precision=precision, workers=2)
    turns = [(mean_of(loader, steps // 8), mean_of(encoder, steps // 8)) for _ in range(8)]
    arms["lightly, 2 workers"] = median(turn[0] for turn in turns), median(turn[1] for turn in turns)
    best = max(bare / step for name, (step, bare) in arms.items() if name.startswith("lightly"))
    print(f"batch {batch}, {arguments.precision}, {steps} steps")
    print()
    print("| arm | images / s | views / s | beside the encoder, share of the step | speed over lightly's best |")
    print("|---|---:|---:|---:|---:|")
    for name, (step, bare) in arms.items():
        share = 100 * (1 - bare / step)
        print(f"| {name} | {batch / step:.0f} | {2 * batch / step:.0f} | {share:.1f} % | {bare / step / best:.2f} |")
    print()
    print("| LARS, ResNet-50 | operations of a step | without views | that wait for the device |")
    print("|---|---:|---:|---:|")
    for name, make in (("ours", lambda m: LARS(lars_groups(m, weight_decay=1e-6), 0.3)), ("lightly", lightly_lars)):
        total, computing, waits = count_lars(make)
        print(f"| {name} | {total} | {computing} | {waits} |")
    print()
    print(setting("torch", "lightly", "accelerate", "cl-train", "cl-augment", "cl-losses", "cl-models"))


if __name__ == "__main__":
    main()
