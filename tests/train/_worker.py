"""Runs of test_distributed.py on several processes: `python _worker.py FOLDER WORLD ...`.

The imports are the slow part, so one process makes them and forks, for one size of the world after the other, into as
many as are wanted, each with the environment that a launcher would give it. Each of them writes the weights, logs and
scores that it has to `FOLDER/world WORLD/result_RANK.pt`.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Literal
from unittest import mock

import _domain_cases
import _norm_cases
import _tune_cases
import torch
from accelerate.state import AcceleratorState
from cl_augment import BYOLAugment, EvalTransform, LinearEvalAugment, SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import (
    BYOL,
    LARS,
    ArrayDataset,
    HealthWarning,
    InputError,
    Method,
    SimCLR,
    UnhealthyRun,
    describe,
    extract_features,
    lars_groups,
    linear_eval,
    make_accelerator,
    pretrain,
)
from torch import Tensor, nn

IMAGES, BATCH, STEPS = 36, 12, 5  # three steps in an epoch, so the last two are of the second


class Net(nn.Module):
    """Nothing in it looks at more than one image, so shares of a batch can be compared with the whole."""

    feature_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 12), nn.Tanh()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class BatchNormNet(Net):
    """Running statistics are of a process's own share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1] = nn.BatchNorm2d(6)


def images(n: int = IMAGES, *, seed: int = 0) -> ArrayDataset:
    """Noise in float64, and three classes that only the noise knows."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64)
    return ArrayDataset(pixels, torch.randint(3, (n,), generator=generator), classes=["a", "b", "c"])


def method(*, gather: bool = True, seed: int = 5, encoder: nn.Module | None = None) -> SimCLR:
    torch.manual_seed(seed)
    encoder, projector = encoder or Net(), nn.Linear(12, 8)
    loss = NTXentLoss(temperature=0.2, gather=gather)
    return SimCLR(encoder, projector, SimCLRAugment(8), loss, num_classes=3).double()


def bootstrap(*, encoder: nn.Module | None = None) -> BYOL:
    torch.manual_seed(5)
    predictor = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 8))
    return BYOL(encoder or Net(), nn.Linear(12, 8), predictor, BYOLAugment(8), 0.6, num_classes=3).double()


def optimizer(name: str, trained: Method) -> torch.optim.Optimizer:
    if name in ("lars", "byol"):
        return LARS(lars_groups(trained, weight_decay=1e-4), 0.5, eta=0.1, lr_in_momentum=name == "lars")
    return torch.optim.SGD(trained.parameters(), 0.5, momentum=0.9)


def run(
    out: Path,
    *,
    name: str = "sgd",
    gather: bool = True,
    steps: int = STEPS,
    seed: int = 5,
    resume: str | Path = "auto",
    may_change: Collection[str] = (),
    encoder: nn.Module | None = None,
    health: Literal["warn", "stop"] = "warn",
    chunk_size: int | None = None,
) -> dict:
    trained = bootstrap(encoder=encoder) if name == "byol" else method(gather=gather, seed=seed, encoder=encoder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthWarning)
        result = pretrain(
            trained,
            images(),
            epochs=3,
            batch_size=BATCH,
            warmup_epochs=0.5,
            out=out,
            optimizer=optimizer(name, trained),
            resume=resume,
            may_change=may_change,
            max_steps=steps,
            log_every=1,
            health=health,
            chunk_size=chunk_size,
            accelerator=make_accelerator("no"),
            progress=False,
        )
    history = [
        {name: value for name, value in entry.items() if name != "images_per_second"} for entry in result.history
    ]
    return {
        "weights": {name: value.clone() for name, value in trained.state_dict().items()},
        "history": history,
        "findings": [str(warning.message) for warning in caught],
    }


def judge() -> dict:
    """Scores with a test set that no number of processes here divides."""
    found = linear_eval(
        method().encoder,
        images(),
        images(301, seed=1),
        transform=LinearEvalAugment(8),
        test_transform=EvalTransform(8),
        epochs=4,
        batch_size=BATCH,
        base_lr=2.0,
        accelerator=make_accelerator("no"),
        progress=False,
    )
    return {"top1": found.top1, "top5": found.top5}


def observe(folder: Path) -> dict:
    """What this process has at the end of every run."""
    seen = {
        "describe": describe(make_accelerator("no")),
        "sgd": run(folder / "sgd"),
        "lars": run(folder / "lars", name="lars"),
        "without gather": run(folder / "without gather", gather=False),
    }
    seen["stopped"] = run_that_is_stopped(folder / "stopped")
    run(folder / "resumed", steps=2)
    seen["resumed"] = run(folder / "resumed", seed=6)
    seen["linear eval"] = judge()
    seen["features"] = extract_features(method().encoder, images(7), transform=EvalTransform(8))[0]
    seen["batchnorm"] = run(folder / "batchnorm", steps=2, encoder=BatchNormNet())
    seen["byol"] = run(folder / "byol", name="byol")
    seen["byol in chunks"] = run(folder / "byol in chunks", name="byol", chunk_size=3)
    seen["byol batchnorm"] = run(folder / "byol batchnorm", name="byol", encoder=BatchNormNet())
    seen["domains"] = _domain_cases.observe(folder, Net)
    seen["other labels"] = run_on_other_labels(folder / "other labels")
    seen["own folders"] = run_with_disks_of_their_own(folder)
    seen["norms"] = _norm_cases.observe(folder, processes=make_accelerator("no").num_processes)
    seen["tuned"] = _tune_cases.observe(folder)
    return seen


def run_with_disks_of_their_own(folder: Path) -> str:
    """What is said of disks that the processes do not share: only the main one's has the checkpoint."""
    run(folder / "own", steps=2)
    alone = os.environ.get("RANK", "0") == "0"
    try:
        with contextlib.nullcontext() if alone else mock.patch.object(Path, "is_file", return_value=False):
            run(folder / "own")
    except InputError as error:
        return str(error)
    return "nothing"


def run_on_other_labels(out: Path) -> str:
    """What is said of processes whose images have other labels each."""
    trained, mine = method(), images()
    mine.labels = (mine.labels + int(os.environ.get("RANK", "0"))) % 3
    try:
        pretrain(
            trained,
            mine,
            epochs=1,
            batch_size=BATCH,
            out=out,
            max_steps=1,
            accelerator=make_accelerator("no"),
            progress=False,
        )
    except InputError as error:
        return str(error)
    return "nothing"


def run_that_is_stopped(out: Path) -> str:
    """What ends a run whose negatives are not gathered."""
    try:
        run(out, gather=False, health="stop")
    except UnhealthyRun as error:
        return f"{error.step} {error}"
    return "nothing"


def process(rank: int, world: int, port: str, folder: Path) -> None:
    """One process of several, as if a launcher had started it."""
    warnings.simplefilter("error")
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.save(observe(folder), folder / f"result_{rank}.pt")
    make_accelerator("no").end_training()


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def main(folder: Path, world: int) -> int:
    """Start the processes of a world; the number of those that failed."""
    folder.mkdir()
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [context.Process(target=process, args=(rank, world, port, folder)) for rank in range(world)]
    for each in processes:
        each.start()
    while any(each.is_alive() for each in processes) and not any(each.exitcode for each in processes):
        time.sleep(0.05)
    for each in processes:
        each.kill()  # those that would wait for one that failed
        each.join()
    return sum(each.exitcode != 0 for each in processes)


if __name__ == "__main__":
    torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)]
    )  # the first optimiser imports half of torch: once, not per fork
    sys.exit(sum(main(Path(sys.argv[1]) / f"world {world}", int(world)) for world in sys.argv[2:]))
