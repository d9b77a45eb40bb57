"""Distillation: a network learns from another one's answers, on images that need no labels."""

import math
from pathlib import Path
from typing import Unpack

import torch
from torch import nn
from torch.optim import Optimizer

from cl_train._classifier import Classifier
from cl_train._datasets import ImageDataset, readable
from cl_train._distilled import Distilled
from cl_train._errors import InputError
from cl_train._frozen import digest_of, fingerprint
from cl_train._labelled import Labels, labelled
from cl_train._lars import LARS, lars_groups
from cl_train._protocol import (
    Loop,
    MakeOptimizer,
    Transform,
    Tuned,
    accelerator_of,
    batch_of,
    check_classes,
    check_network,
    inference,
    train_and_test,
)
from cl_train._relabelled import keep_labels


def distill(
    student: Classifier,
    train: ImageDataset,
    test: ImageDataset,
    *,
    teacher: nn.Module,
    transform: Transform,
    test_transform: Transform,
    temperature: float = 1.0,
    labels: Labels = None,
    label_weight: float = 0.0,
    epochs: int = 400,
    batch_size: int = 4096,
    optimizer: MakeOptimizer | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **loop: Unpack[Loop],
) -> Tuned:
    r"""Train a classifier to answer as another one does, and test it: SimCLR v2's third stage.

    The loss is $(1 - w)\, d + w\, c$ with $w$ the `label_weight`, $d$ `distillation_loss` over the batch, and $c$ the
    cross entropy of those of its images that have labels, added up and divided by how many of a batch have one on
    average. Both networks see the same views. Defaults are the paper's: the schedule and batch of pretraining (400
    epochs, batch 4096, LARS with learning rate $0.1 \sqrt{\text{batch}}$ and weight decay 1e-4, warm-up for a twentieth
    of the epochs), crop and flip, no labels (arXiv:2006.10029, sections 2 and 3). It distils into a network like the
    teacher at `temperature` 0.1 first, then into smaller ones at 1.0.

    Args:
        student: Trained in place; its weights must be equal on all processes.
        train: Images; labels are used where `label_weight` > 0 only.
        test: Labelled images.
        teacher: views -> logits, one for each of the student's classes: such as what `fine_tune` trained. It is
            in inference mode, and checksums prove that it stays as it was. It stays on the device of the run.
        transform: `(images, keys) -> views` for training, such as `cl_augment.LinearEvalAugment`.
        test_transform: Likewise for the test, such as `cl_augment.EvalTransform`.
        temperature: tau > 0.
        labels: Which images of `train` have labels, as in `fine_tune`; with the same seed, the same ones.
        label_weight: w in [0, 1).
        epochs: Passes over the images, >= 1.
        batch_size: Images per step over all processes; at most all images, and a multiple of the processes, are taken.
        optimizer: `(student, images per step) -> optimizer`, called when these are known; None: the LARS above.
        seed: Seed of the draw of labels, of the order of the images and of their views.
        out: Folder of the run, to go on from after an interruption, with the student as it was at first; None: a
            temporary one, kept only where the run fails.
        loop: Any other keyword of `pretrain`, such as `workers`, `chunk_size`, `accelerator`.

    Returns:
        The student, its accuracies and what was logged.

    Raises:
        InputError: The networks' classes are not those of the images, labels are missing, the teacher has changed or is
            not the one that the run in `out` was begun with, or an argument is out of its range.
        Interrupted: As `pretrain`.
        FloatingPointError: As `pretrain`.
    """
    _check(student, teacher, test, temperature=temperature, label_weight=label_weight)
    accelerator = accelerator_of(loop)
    images, share = train, 1.0
    identity: dict[str, object] = {"task": "distill", "student": fingerprint(student), "teacher": fingerprint(teacher)}
    identity |= {"temperature": temperature, "label_weight": label_weight}
    if label_weight > 0:
        check_classes(train, test)
        ids = labelled(train, labels, seed=seed)
        images, share = keep_labels(train, ids), len(ids) / len(train)
        identity["labelled"] = digest_of(ids)
    batch_size = batch_of(batch_size, images, accelerator)
    loop.setdefault("title", "distill")
    loop.setdefault("warmup_epochs", epochs / 20)
    method = Distilled(
        student, transform, teacher=teacher, temperature=temperature, label_weight=label_weight, labelled=share
    )
    with inference(teacher, accelerator, name="teacher"):
        _check_teacher(teacher, student, test_transform, test, accelerator.device)
        return train_and_test(
            method,
            student,
            images,
            test,
            test_transform=test_transform,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=(optimizer or _lars)(student, batch_size),
            seed=seed,
            out=out,
            identity=identity,
            loop=loop,
        )


def _lars(student: nn.Module, batch_size: int) -> Optimizer:
    return LARS(lars_groups(student, weight_decay=1e-4), 0.1 * math.sqrt(batch_size))


def _check(
    student: Classifier, teacher: nn.Module, test: ImageDataset, *, temperature: float, label_weight: float
) -> None:
    if {id(parameter) for parameter in student.parameters()} & {id(parameter) for parameter in teacher.parameters()}:
        raise InputError("`teacher` must share no parameter with `student`: it would learn with it.")
    if test.labels is None:
        raise InputError("`test` must have labels.")
    check_network(student, len(test.classes or []), name="student")
    if not temperature > 0:
        raise InputError(f"`temperature` must be positive, got {temperature}.")
    if not 0 <= label_weight < 1:
        raise InputError(f"`label_weight` must be in [0, 1), got {label_weight}.")


@torch.no_grad()
def _check_teacher(
    teacher: nn.Module, student: Classifier, transform: Transform, test: ImageDataset, device: torch.device
) -> None:
    """Raise unless the teacher answers with one number for each class."""
    view = transform(test.read(readable(test, 1)[0])[None].to(device), torch.zeros(1, dtype=torch.int64, device=device))
    shape = tuple(teacher(view).shape)
    if shape != (1, student.classes):
        raise InputError(
            f"`teacher` must return logits of shape (n, {student.classes}) like `student`, got {shape} for one image."
        )
