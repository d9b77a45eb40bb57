"""Runs that are well and runs that are broken on purpose: what `pretrain` warns of, and the number it names.

    hatch run bench:health --data DIR        # DIR holds CIFAR-10 as `cl_train.load_cifar10` reads it; some 20 minutes

Prints a table. Well are CIFAR-10 and the digits of examples/simclr_imagenet.py at three temperatures; the digits train
for as long as there, CIFAR-10, of which 5,000 images are taken, for some epochs. Then follows the range of each figure
over all looks at the runs that are well. Two processes talk by gloo. Exit code 1 if a run is not called what it should.
"""

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tiny
import torch
from cl_augment import RandomStroke, RandomWarp, SimCLRAugment, TwoViewAugment, TwoViews
from cl_losses import NTXentLoss
from cl_models import ProjectionHead, resnet18
from cl_train import LARS, ArrayDataset, HealthWarning, SimCLR, lars_groups, load_cifar10, load_digits, pretrain
from torch import Tensor, nn

BATCH, WIDTH = 256, 128


class Case(NamedTuple):
    """One run: its name, images, views, temperature, epochs, and what it should be called."""

    name: str
    images: Tensor
    augment: TwoViewAugment
    temperature: float
    epochs: int
    expected: str = "none"
    head: nn.Module | None = None


class Equal(SimCLRAugment):
    """The second view is the first."""

    def stacked(self, images: Any, keys: Tensor) -> Tensor:  # type: ignore[override]
        return super().stacked(images, keys)[: len(images)].repeat(2, 1, 1, 1)


class Constant(nn.Module):
    """A direction that all projections share, and next to nothing of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        return 1 + 1e-3 * self.linear(features).tanh()


def digit_views() -> TwoViewAugment:
    """Those of the example."""
    warp = RandomWarp(16, scale=(0.6, 1.1), degrees=15, shear=0.2, elastic=0.1)
    return TwoViews(warp, RandomStroke(thickness=0.5, gamma=0.4))


def cases(images: Tensor, digits: Tensor, *, epochs: int, digit_epochs: int) -> list[Case]:
    """Runs that are well, then those that are not."""
    views = SimCLRAugment(32, strength=0.5, blur=False)
    well = [Case(f"CIFAR-10, temperature {t}", images, views, t, epochs) for t in (0.1, 0.2, 0.5)]
    well += [Case(f"digits, temperature {t}", digits, digit_views(), t, digit_epochs) for t in (0.1, 0.2, 0.5)]
    twice = images[: len(images) // 2].repeat(2, 1, 1, 1)
    steps = len(images) // BATCH
    longer = max(epochs, 100 // steps + 2)  # collapse is not judged in the first 100 steps
    equal = Equal(32, strength=0.5, blur=False)
    return [
        *well,
        Case("CIFAR-10, temperature 0.001", images, views, 1e-3, epochs, "temperature too low"),
        Case("digits, temperature 0.001", digits, digit_views(), 1e-3, epochs, "temperature too low"),
        Case("CIFAR-10, one view twice", images, equal, 0.2, epochs, "identical views"),
        Case("CIFAR-10, each image twice", twice, views, 0.2, epochs, "duplicated images"),
        Case("CIFAR-10, a constant direction", images, views, 0.2, longer, "complete collapse", Constant(128)),
    ]


def run(case: Case, out: Path) -> tuple[list[HealthWarning], list[dict[str, Any]]]:
    """What a run warned of, and its log."""
    torch.manual_seed(0)
    encoder = resnet18(width=0.25, stem="cifar", in_channels=case.images.shape[1])
    features: int = encoder.feature_dim
    head = case.head or ProjectionHead(features, features, WIDTH)
    method = SimCLR(encoder, head, case.augment, NTXentLoss(temperature=case.temperature))
    optimizer = LARS(lars_groups(method), 1.0, weight_decay=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthWarning)
        result = pretrain(
            method,
            ArrayDataset(case.images),
            epochs=case.epochs,
            batch_size=BATCH,
            out=out,
            optimizer=optimizer,
            warmup_epochs=min(5.0, case.epochs / 10),
            progress=False,
        )
    return [w.message for w in caught if isinstance(w.message, HealthWarning)], result.history


def two_processes(*, gather: bool) -> list[str]:
    """What a run on two processes warns of."""
    with tempfile.TemporaryDirectory() as folder:
        return _forked(Path(folder), gather=gather)


def _forked(out: Path, *, gather: bool) -> list[str]:
    def process() -> None:
        trained = tiny.method(loss=NTXentLoss(temperature=0.5, gather=gather))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", HealthWarning)
            tiny.run(out / "run", trained=trained, max_steps=tiny.PER_EPOCH)
        with (out / "findings").open("a") as file:
            file.writelines(f"{w.message}\n" for w in caught if isinstance(w.message, HealthWarning))

    codes = tiny.wait(tiny.fork(process, world=2, log=out / "log"), seconds=120)
    assert codes == [0, 0], (out / "log").read_text()
    return (out / "findings").read_text().splitlines()


def ranges(looks: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Of each figure that is judged, the least and the largest over looks at runs that are well."""
    erring = [entry for entry in looks if entry["accuracy"] <= 0.99]
    right = [entry for entry in looks if entry["accuracy"] >= 0.5]
    columns = {
        "spread": [entry["spread"] for entry in looks],
        f"effective rank of {WIDTH}": [entry["effective_rank"] for entry in looks],
        "alignment": [entry["alignment"] for entry in looks],
        "entropy / (2 log 2 errors), accuracy <= 0.99": [
            entry["entropy"] / (2 * math.log(2) * (1 - entry["accuracy"])) for entry in erring
        ],
        "entropy / log n, accuracy >= 0.5": [entry["entropy"] / math.log(BATCH) for entry in right],
        "accuracy": [entry["accuracy"] for entry in looks],
    }
    return {name: (min(values), max(values)) for name, values in columns.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=4, help="of CIFAR-10 and of what is ill")
    parser.add_argument("--digit-epochs", type=int, default=90)
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10")
    given = parser.parse_args()
    threads = torch.get_num_threads()
    tiny.prepare()
    forked = {gather: two_processes(gather=gather) for gather in (True, False)}  # before anything is computed
    torch.set_num_threads(threads)
    images, digits = load_cifar10(given.data)[0].images, load_digits()[0].images
    assert images is not None
    assert digits is not None
    print("| run | should be | is | epoch of the first | message |\n|---|---|---|---:|---|")
    looks: list[dict[str, Any]] = []
    good = True
    for case in cases(images[: given.images], digits, epochs=given.epochs, digit_epochs=given.digit_epochs):
        with tempfile.TemporaryDirectory() as folder:
            found, history = run(case, Path(folder))
        if case.expected == "none":
            looks += [entry for entry in history if "spread" in entry]
        good &= _row(case.name, case.expected, [str(warning) for warning in found])
    good &= _row("noise, 2 processes", "none", forked[True])
    good &= _row("noise, 2 processes, gather=False", "local negatives", forked[False])
    print("\n| figure of runs that are well | least | largest |\n|---|---:|---:|")
    for name, (least, most) in ranges(looks).items():
        print(f"| {name} | {least:.4g} | {most:.4g} |")
    sys.exit(not good)


def _row(name: str, expected: str, messages: list[str]) -> bool:
    names = [message.split(": ")[1] for message in messages] or ["none"]
    epoch = messages[0].split(" at epoch ")[1].split(";")[0] if messages else ""
    text = messages[0].split(": ", 2)[2].split(" at epoch ")[0] if messages else ""
    print(f"| {name} | {expected} | {', '.join(names)} | {epoch} | {text} |", flush=True)
    return names == [expected]


if __name__ == "__main__":
    main()
