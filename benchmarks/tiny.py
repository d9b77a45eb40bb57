"""A run of a second, alone or on several processes, for what breaks it: resume.py and faults.py.

Processes are forked from one that has made the imports, which take longer than the run.
"""

import importlib
import json
import mmap
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Collection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, FolderDataset, ImageDataset, SimCLR, make_accelerator, pretrain
from cl_train._simclr import SimCLREmbeddings
from PIL import Image
from torch import Tensor, nn

EPOCHS, BATCH, IMAGES = 3, 8, 34
PER_EPOCH = IMAGES // BATCH
STEPS = EPOCHS * PER_EPOCH
SETTINGS = {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "warmup_epochs": 0,
    "log_every": 3,  # no divisor of what an epoch has, and checkpoints are written in the middle of its windows
    "checkpoint_every": 2,
    "workers": 0,
    "mixed_precision": "no",
    "progress": False,
}


class Net(nn.Module):
    """Convolution, BatchNorm, dropout: what a restart has to bring back is weights, statistics and random numbers."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(torch.relu(self.bn(self.conv(images))).mean((2, 3)))


class Counter:
    """A number that forked processes share with the one that made it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return int.from_bytes(self.memory[:8], "little")

    @value.setter
    def value(self, number: int) -> None:
        self.memory[:8] = number.to_bytes(8, "little")


Poison = Literal["loss", "embedding", "gradient"]


class Watched(SimCLR):
    """Counts the steps it has taken, for whoever wants to break the run at one, and may swallow a poison.

    Attributes:
        taken: Steps, for other processes.
        calls: Forwards.
        poison: Which numbers are not finite in some forwards.
        at: Indices of these forwards.
        before_step: Called with the index of the forward.
    """

    taken: Counter | None = None
    calls = 0
    poison: Poison | None = None
    at: Collection[int] = ()
    before_step: Callable[[int], object] | None = None

    def forward(self, views: Tensor) -> SimCLREmbeddings:
        if self.before_step is not None:
            self.before_step(self.calls)
        found = super().forward(views)
        poison = self.poison if self.calls in self.at else None
        self.calls += 1
        self.spoilt = poison == "loss"
        if poison == "embedding":
            return found._replace(z_a=found.z_a.index_fill(0, torch.tensor([1]), torch.nan))
        if poison == "gradient":
            found.z_b.register_hook(lambda gradient: gradient * torch.inf)
        return found

    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(embeddings, labels)
        return (loss * torch.nan, metrics | {"loss": metrics["loss"] * torch.nan}) if self.spoilt else (loss, metrics)

    def after_step(self, step: int, total_steps: int) -> None:
        if self.taken is not None:
            self.taken.value += 1


def images() -> ArrayDataset:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 10, 10), dtype=torch.uint8, generator=generator)
    return ArrayDataset(pixels, torch.arange(IMAGES) % 2)


def image_folder(root: Path) -> FolderDataset:
    """The same as files."""
    for number, pixels in enumerate(images().images):
        path = root / f"class {number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8)).save(path)
    return FolderDataset(root)


def method(*, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Watched:
    """Equal at each call."""
    torch.manual_seed(5)
    projector = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return Watched(Net(), projector, SimCLRAugment(8), loss or NTXentLoss(temperature=0.5), num_classes=2)


def run(out: Path, *, trained: Watched | None = None, data: ImageDataset | None = None, **changes: Any) -> Any:
    """`pretrain` of the tiny method by SGD with momentum and decay."""
    trained = trained or method()
    optimizer = torch.optim.SGD(trained.parameters(), 0.2, momentum=0.9, weight_decay=1e-3)
    return pretrain(trained, data or images(), out=out, optimizer=optimizer, **SETTINGS | changes)


def fork(call: Callable[[], object], *, world: int = 1, log: Path | None = None) -> list[BaseProcess]:
    """`call` in processes that believe a launcher started them; what they print goes to `log`."""
    context, port = multiprocessing.get_context("fork"), _free_port()
    processes: list[BaseProcess] = []
    for rank in range(world):
        processes.append(context.Process(target=_process, args=(call, rank, world, port, log)))
        processes[-1].start()
    return processes


def _process(call: Callable[[], object], rank: int, world: int, port: str, log: Path | None) -> None:
    if log is not None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    if world > 1:
        os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    call()
    if world > 1:
        make_accelerator("no").end_training()


def _free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def wait(processes: list[BaseProcess], *, seconds: float = 60) -> list[int | None]:
    """Exit codes, None for those that had to be ended as they took longer."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    end(processes)
    return codes


def end(processes: list[BaseProcess]) -> None:
    """By SIGKILL."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def wait_for(condition: Callable[[], bool], processes: list[BaseProcess], *, seconds: float = 60) -> bool:
    """Whether a condition came true before the processes ended."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until or not all(process.is_alive() for process in processes):
            return condition()
        time.sleep(0.0002)
    return True


def saved(out: Path, *, step: int = STEPS) -> dict[str, Tensor]:
    """Weights, statistics and the optimiser's state in the checkpoint of a step."""
    checkpoint = out / "checkpoints" / f"step-{step:08d}"
    tensors = safetensors.torch.load_file(checkpoint / "method.safetensors")
    for index, entries in torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].items():
        tensors |= {f"{name} {index}": value for name, value in entries.items() if isinstance(value, Tensor)}
    return tensors


def log_of(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock makes of it."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two sets of tensors, infinite if they are not of the same names."""
    if found.keys() != expected.keys():
        return float("inf")
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


def prepare() -> None:
    """What is imported by a first run, so that no forked one has to; call it before any computation."""
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    importlib.import_module("torch._dynamo")  # for several processes; it takes seconds


def main() -> None:
    """`python tiny.py OUT PAUSE`: the run, with so many seconds before each step, for launchers."""
    out, pause = Path(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    trained = method()

    def pace(step: int) -> None:
        time.sleep(pause)
        with (out / f"taken by {os.environ.get('RANK', '0')}").open("a") as file:
            file.write(f"{step}\n")

    trained.before_step = pace
    run(out, trained=trained, checkpoint_every=None)


if __name__ == "__main__":
    main()
