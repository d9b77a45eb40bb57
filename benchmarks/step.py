"""What a training step costs beside the encoder, and the whole loop beside lightly's.

    hatch run bench:step --data DIR      # DIR/train.parquet of CIFAR-10; alone on the machine

Same network (ResNet-18 with a quarter of the channels, stem for 32 px, head of two layers), images, batch and precision
in every arm. "encoder" is forward and backward of network and head on views that are there already: what no loop can
save. lightly's arm is its SimCLR example: PIL transform in the loader's workers, its loss, SGD. Rounds take the arms in
turns; figures are medians over rounds.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
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


def encoder_alone(data: ArrayDataset, *, batch: int, steps: int, precision: torch.dtype) -> float:
    """Seconds of a forward and backward of as many views as a step has."""
    model = nn.Sequential(*network()).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    views = torch.rand(2 * batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    slope = torch.randn(2 * batch, 128)
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            projections = model(views)
        projections.float().backward(slope)
        seconds.append(time.perf_counter() - begin)
        model.zero_grad()
    return median(seconds[1:])


def ours(data: ArrayDataset, *, batch: int, steps: int, precision: torch.dtype, **settings: Any) -> float:
    """Seconds of a step of `pretrain`, everything included."""
    method = SimCLR(*network(), SimCLRAugment(SIZE, strength=0.5, blur=False), NTXentLoss(temperature=0.5))
    every = max(1, steps // 4)
    with tempfile.TemporaryDirectory() as out:
        result = pretrain(
            method,
            data,
            epochs=1000,
            batch_size=batch,
            out=out,
            max_steps=steps,
            log_every=every,
            mixed_precision="no" if precision == torch.float32 else "bf16",
            progress=False,
            **settings,
        )
    return batch / median(entry["images_per_second"] for entry in result.history[1:])


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


def lightly(data: ArrayDataset, *, batch: int, steps: int, precision: torch.dtype, workers: int) -> float:
    """Seconds of a step of lightly's example: two forwards, its loss, SGD."""
    encoder, head = network()
    model = nn.Sequential(encoder, head).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.06), LightlyLoss(temperature=0.5)
    loader = DataLoader(Pictures(data), batch_size=batch, shuffle=True, drop_last=True, num_workers=workers)
    moments: list[float] = []
    while len(moments) <= steps:
        for view_a, view_b in loader:
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                z_a, z_b = (model(v.contiguous(memory_format=torch.channels_last)) for v in (view_a, view_b))
                loss = loss_fn(z_a, z_b)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            moments.append(time.perf_counter())
            if len(moments) > steps:
                break
    first = len(moments) // 4  # the workers have filled their queue by then
    return (moments[-1] - moments[first]) / (len(moments) - 1 - first)


ARMS: dict[str, Callable[..., float]] = {
    "encoder": encoder_alone,
    "ours": ours,
    "ours, compiled views": lambda data, **settings: ours(data, compile="views", **settings),
    "lightly, workers in the loop": lambda data, **settings: lightly(data, workers=0, **settings),
    "lightly, 2 workers": lambda data, **settings: lightly(data, workers=2, **settings),
}


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
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
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
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(arguments.rounds):
        for name, arm in ARMS.items():
            seconds[name].append(arm(data, batch=arguments.batch, steps=arguments.steps, precision=precision))
    bare = median(seconds["encoder"])
    peer = min(median(found) for name, found in seconds.items() if name.startswith("lightly"))
    print(f"batch {arguments.batch}, {arguments.precision}")
    print()
    print("| arm | images / s | views / s | beside the encoder, share of the step | images / s over lightly's best |")
    print("|---|---:|---:|---:|---:|")
    for name, found in seconds.items():
        step = median(found)
        print(
            f"| {name} | {arguments.batch / step:.0f} | {2 * arguments.batch / step:.0f} "
            f"| {100 * (1 - bare / step):.1f} % | {peer / step:.2f} |"
        )
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
