"""Training speed of the encoders beside torchvision's and timm's: one forward and backward with the same weights.

    hatch run bench:models                       # a few minutes on two cores
    hatch run bench:models --rounds 31 --rows resnet18

Arms of a row are timed in turns, in an order that rotates from round to round; a cell is the median over rounds of an
arm's time divided by torchvision's time in the same round, so that a machine that slows down slows down all.
"""

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import timm
import torch
import torchvision
from cl_models import ResNet, resnet18, resnet50
from measure import peak_bytes, setting
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torchvision_resnet50() -> nn.Module:
    """Without its classifier."""
    network = torchvision.models.resnet50()
    network.fc = nn.Identity()
    return network


def torchvision_resnet18_cifar() -> nn.Module:
    """As everybody adapts it to 32 px."""
    network = torchvision.models.resnet18()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network.fc = nn.Identity()
    return network


# row: images of a batch, side, what makes each arm; the first arm is the measure
ROWS: dict[str, tuple[int, int, dict[str, Callable[[], nn.Module]]]] = {
    "resnet50": (
        4,
        224,
        {
            "torchvision": torchvision_resnet50,
            "ours": resnet50,
            "timm": lambda: timm.create_model("resnet50", num_classes=0),
            'ours, variant="google"': lambda: resnet50(variant="google"),
            "ours, selective_kernel": lambda: resnet50(selective_kernel=True),
        },
    ),
    "resnet18 cifar": (
        64,
        32,
        {
            "torchvision": torchvision_resnet18_cifar,
            "ours": lambda: resnet18(stem="cifar"),
            'ours, variant="google"': lambda: resnet18(stem="cifar", variant="google"),
        },
    ),
}


def prepare(make: Callable[[], nn.Module], *, like: dict[str, Tensor], layout: torch.memory_format) -> nn.Module:
    """A network with the weights of torchvision's, where it has the same ones."""
    torch.manual_seed(0)
    network = make()
    if not isinstance(network, ResNet) or (
        network.config["variant"] == "torchvision" and not network.config["selective_kernel"]
    ):
        network.load_state_dict(like)
    return network.to(memory_format=layout).train()  # type: ignore[call-overload]


def step(network: nn.Module, images: Tensor, precision: torch.dtype) -> None:
    """Forward and backward."""
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features = network(images)
    features.float().square().mean().backward()
    for parameter in network.parameters():
        parameter.grad = None


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def measure(
    arms: dict[str, nn.Module], images: Tensor, precision: torch.dtype, *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each arm in each round."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for network in arms.values():
        step(network, images, precision)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            begin = time.perf_counter()
            step(arms[name], images, precision)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def figures(seconds: dict[str, list[float]], name: str, *, batch: int, peak: int) -> list[str]:
    """Cells of an arm."""
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds["torchvision"], strict=True))
    quarter = len(ratios) // 4
    return [
        f"{batch / median(seconds[name]):.1f}",
        f"{median(ratios):.3f}",
        f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}",
        f"{peak / 1e6:.0f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", choices=[name.split()[0] for name in ROWS], default=None)
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| network | precision, layout | arm | images / s | time / torchvision's | quartiles | peak MB | operations |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for row, (batch, size, makers) in ROWS.items():
        if arguments.rows and row.split()[0] not in arguments.rows:
            continue
        for precision in arguments.precisions:
            for layout in FORMATS:
                torch.manual_seed(0)
                like = makers["torchvision"]().state_dict()
                arms = {name: prepare(make, like=like, layout=FORMATS[layout]) for name, make in makers.items()}
                images = torch.rand(batch, 3, size, size).contiguous(memory_format=FORMATS[layout])
                seconds = measure(arms, images, PRECISIONS[precision], rounds=arguments.rounds)
                for name, network in arms.items():
                    peak = peak_bytes(partial(step, network, images, PRECISIONS[precision]))
                    with Operations() as operations:
                        step(network, images, PRECISIONS[precision])
                    cells = [f"{row}, {batch} x {size} px", f"{precision}, {layout}", name]
                    cells += [*figures(seconds, name, batch=batch, peak=peak), str(operations.count)]
                    print(f"| {' | '.join(cells)} |", flush=True)
    print()
    print(setting("torch", "torchvision", "timm", "cl-models"))


if __name__ == "__main__":
    main()
