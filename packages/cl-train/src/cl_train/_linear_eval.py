"""Linear evaluation as the paper does it: frozen encoder, augmented images, one linear layer."""

from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from cl_train._classifier import Classifier
from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._frozen import Frozen, fingerprint
from cl_train._protocol import (
    Loop,
    Transform,
    accelerator_of,
    batch_of,
    check_classes,
    inference,
    train_and_test,
)
from cl_train._schedule import scaled_lr
from cl_train._scores import Scores
from cl_train._supervised import Supervised


def linear_eval(
    encoder: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    *,
    transform: Transform,
    test_transform: Transform,
    epochs: int = 90,
    batch_size: int = 4096,
    base_lr: float = 0.1,
    seed: int = 0,
    out: str | Path | None = None,
    **loop: Unpack[Loop],
) -> Scores:
    """Accuracies of a linear layer on a frozen encoder, the number that papers report.

    The encoder runs in inference mode, and checksums before and after prove that it is as it was. Defaults are the
    paper's: 90 epochs, batch 4096, Nesterov momentum 0.9 with learning rate 0.1 * batch / 256 falling along a cosine,
    no warm-up, no decay, crop and flip in training (arXiv:2002.05709, App. B.5 and B.6). The loop is that of
    `pretrain`: several processes, resume, signals, unreadable images.

    The encoder stays on the device of the run, in channels-last layout. The number says little without that of the
    same encoder before it was trained, and of the raw pixels.

    Args:
        encoder: views (n, c, size, size) -> features (n, d), with an attribute `feature_dim`.
        train: Labelled images.
        test: Labelled images of the same classes.
        transform: `(images, keys) -> views` for training, such as `cl_augment.LinearEvalAugment`.
        test_transform: Likewise for the test, such as `cl_augment.EvalTransform`.
        epochs: Passes over the training images, >= 1.
        batch_size: Images per step over all processes; at most all images, and a multiple of the processes, are taken.
        base_lr: Learning rate at a batch of 256, > 0.
        seed: Seed of the order of the images and of their views.
        out: Folder of the run, to go on from after an interruption; None: a temporary one, kept only where the run
            fails.
        loop: Any other keyword of `pretrain`, such as `workers`, `max_steps`, `max_bad_images`, `accelerator`.

    Returns:
        Accuracies on all test images that can be read, the same on every process.

    Raises:
        InputError: A data set has no labels, the classes differ or are fewer than two, the encoder has changed or is
            not the one that the run in `out` was begun with, or an argument is out of its range.
        Interrupted: As `pretrain`.
        FloatingPointError: As `pretrain`.
    """
    classes = check_classes(train, test)
    accelerator = accelerator_of(loop)
    batch_size = batch_of(batch_size, train, accelerator)
    if not base_lr > 0:
        raise InputError(f"`base_lr` must be positive, got {base_lr}.")
    loop.setdefault("title", "linear eval")
    loop.setdefault("warmup_epochs", 0.0)
    network = Classifier(Frozen(encoder), classes)
    with inference(encoder, accelerator, name="encoder"):
        return train_and_test(
            Supervised(network, transform),
            network,
            train,
            test,
            test_transform=test_transform,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=torch.optim.SGD(
                network.parameters(), scaled_lr(base_lr, batch_size), momentum=0.9, nesterov=True
            ),
            seed=seed,
            out=out,
            identity={"task": "linear_eval", "encoder": fingerprint(encoder)},
            loop=loop,
        ).scores
