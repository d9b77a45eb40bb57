"""What linear evaluation, fine-tuning and distillation share: their checks, the loop, and the test at the end."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from cl_train._classifier import Classifier
from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._finite import OnNonfinite
from cl_train._frozen import frozen
from cl_train._judge import judge
from cl_train._labels import check_all_labelled
from cl_train._launch import MixedPrecision, make_accelerator, on_main
from cl_train._norms import Statistics
from cl_train._plan import check_whole
from cl_train._pretrain import PretrainResult, pretrain
from cl_train._scores import Scores
from cl_train._settings import ChunkSize
from cl_train._step import Compile
from cl_train._supervised import OneView
from cl_train._trackers import Tracker
from cl_train._watch import Health

Transform = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[nn.Module, int], Optimizer]

_TEST_BATCH = 256  # images of a process at a time


class Loop(TypedDict, total=False):
    """Keywords that are handed on to `pretrain`, which says what they mean."""

    chunk_size: ChunkSize
    accumulate: int
    batchnorm: Statistics
    warmup_epochs: float | None
    resume: str | Path
    may_change: Collection[str]
    workers: int | None
    mixed_precision: MixedPrecision
    compile: Compile
    max_steps: int | None
    log_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    keep_every: int | None
    keep_best: str | None
    on_nonfinite: OnNonfinite
    max_bad_images: float
    health: Health
    trackers: Collection[Tracker]
    config: Mapping[str, Any] | None
    accelerator: Accelerator | None
    title: str
    progress: bool


@dataclass(frozen=True)
class Tuned:
    """A classifier that was trained, and what it is worth.

    Attributes:
        network: The classifier, in training mode, on the device it was trained on.
        scores: Accuracies on all test images that can be read, the same on every process.
        run: What `pretrain` returned; without `out`, of a folder that is gone.
    """

    network: Classifier
    scores: Scores
    run: PretrainResult


def train_and_test(
    method: OneView,
    network: Classifier,
    train: ImageDataset,
    test: ImageDataset,
    *,
    test_transform: Transform,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    seed: int,
    out: str | Path | None,
    identity: Mapping[str, Any],
    loop: Loop,
) -> Tuned:
    """Train a method by `pretrain`, then judge its network on the test images.

    Args:
        method: What is trained.
        network: What of it is judged.
        train: Images.
        test: Labelled images.
        test_transform: Of the test images.
        epochs: As in `pretrain`.
        batch_size: Of `batch_of`.
        optimizer: As in `pretrain`.
        seed: As in `pretrain`.
        out: Folder of the run; None: a temporary one, kept only where the run fails.
        identity: What must be the same for a run to go on.
        loop: The rest of `pretrain`'s keywords.
    """
    accelerator = accelerator_of(loop)
    loop["config"] = dict(loop.get("config") or {}) | dict(identity)
    with _folder(out, accelerator) as folder:
        run = pretrain(
            method, train, epochs=epochs, batch_size=batch_size, optimizer=optimizer, seed=seed, out=folder, **loop
        )
    scores = judge(
        network,
        test,
        transform=test_transform,
        share=min(batch_size // accelerator.num_processes, _at_once(loop.get("chunk_size"))),
        accelerator=accelerator,
        workers=loop.get("workers"),
        max_bad_images=loop.get("max_bad_images", 0.0),
    )
    return Tuned(network, scores, run)


def _at_once(chunk_size: ChunkSize) -> int:
    """Test images that surely fit where chunks of this size were trained on; more would bring no speed."""
    return min(chunk_size, _TEST_BATCH) if isinstance(chunk_size, int) else _TEST_BATCH


def accelerator_of(loop: Loop) -> Accelerator:
    """The accelerator of a run, made and noted if there is none."""
    accelerator = loop.get("accelerator") or make_accelerator(loop.get("mixed_precision", "auto"))
    loop["accelerator"] = accelerator
    return accelerator


def check_classes(train: ImageDataset, test: ImageDataset) -> int:
    """Number of classes of two labelled data sets.

    Raises:
        InputError: One has no labels, the classes differ, or there is one class only.
    """
    if train.labels is None or test.labels is None:
        raise InputError("`train` and `test` must have labels.")
    for name, labels in (("train", train.labels), ("test", test.labels)):
        check_all_labelled(labels, name=name)
    if train.classes != test.classes:
        raise InputError(f"`train` and `test` must have the same classes, got {train.classes} and {test.classes}.")
    found = train.labels.unique().tolist()
    if len(found) < 2:
        raise InputError(f"`train` must have images of at least 2 classes, all are of class {found[0]}.")
    return len(train.classes or [])


def check_network(network: Classifier, classes: int, *, name: str) -> None:
    """Raise unless a network tells as many classes apart as there are."""
    if network.classes != classes:
        raise InputError(f"`{name}` must have the {classes} classes of the images, it has {network.classes}.")


def batch_of(batch_size: int, dataset: ImageDataset, accelerator: Accelerator) -> int:
    """Images per step: what was asked for, but at most all, and a multiple of the processes.

    Raises:
        InputError: It is none, or there are fewer images than that takes.
    """
    check_whole("batch_size", batch_size)
    if batch_size < 1:
        raise InputError(f"`batch_size` must be positive, got {batch_size}.")
    processes = accelerator.num_processes
    taken = min(batch_size, len(dataset)) // processes * processes
    if taken < 1:
        raise InputError(
            f"`batch_size` and the images must be at least as many as the {processes} processes, got {batch_size} and "
            f"{len(dataset)}."
        )
    return taken


@contextmanager
def inference(network: nn.Module, accelerator: Accelerator, *, name: str) -> Iterator[None]:
    """Within it a network is on the device, in inference mode, and may not change."""
    network.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with frozen(network, name=name):
        yield


@contextmanager
def _folder(out: str | Path | None, accelerator: Accelerator) -> Iterator[Path]:
    """`out`, or a temporary folder of the main process."""
    if out is not None:
        yield Path(out)
        return
    made = on_main(accelerator, lambda: tempfile.mkdtemp(prefix="cl-train-"))
    yield Path(made)
    # not after an error: what it names is there
    if accelerator.is_main_process:
        shutil.rmtree(made)
