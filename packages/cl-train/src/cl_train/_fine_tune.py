"""Fine-tuning: the whole network learns from the labels that there are."""

import math
from pathlib import Path
from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from cl_train._classifier import Classifier
from cl_train._datasets import ImageDataset
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
    train_and_test,
)
from cl_train._subset import Subset
from cl_train._supervised import Supervised


def fine_tune(
    network: Classifier,
    train: ImageDataset,
    test: ImageDataset,
    *,
    transform: Transform,
    test_transform: Transform,
    labels: Labels = None,
    epochs: int = 60,
    batch_size: int = 1024,
    optimizer: MakeOptimizer | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **loop: Unpack[Loop],
) -> Tuned:
    r"""Train all of a classifier on few labels or many, and test it.

    Defaults are SimCLR v2's for 1 % of ImageNet: 60 epochs, batch 1024, LARS with learning rate
    $0.005 \sqrt{\text{batch}}$ falling along a cosine, no warm-up, no decay, crop and flip, `Classifier(encoder,
    classes, projector=projector)` from the first layer of the head; for 10 % and more: 30 epochs (arXiv:2006.10029,
    section 3, and the authors' README). SimCLR's first paper took the encoder alone, batch 4096, 60 epochs on 1 % and
    30 on 10 %, and as `optimizer`

        lambda network, batch: SGD(network.parameters(), scaled_lr(0.05, batch), momentum=0.9, nesterov=True)

    (arXiv:2002.05709, App. B.5). The same call with a network that was not pretrained is the comparison that such a
    number needs.

    Args:
        network: Trained in place; its weights must be equal on all processes.
        train: Labelled images.
        test: Labelled images of the same classes.
        transform: `(images, keys) -> views` for training, such as `cl_augment.LinearEvalAugment`.
        test_transform: Likewise for the test, such as `cl_augment.EvalTransform`.
        labels: Which images of `train` are used: so many of each class (an int); a share of all in (0, 1), evenly
            spread over the classes; those named in a text file, one a line, as in the published lists for ImageNet (its
            path); those with these numbers (a tensor); None: all. Where it is left to chance, `seed` decides.
        epochs: Passes over these images, >= 1.
        batch_size: Images per step over all processes; at most all images, and a multiple of the processes, are taken.
        optimizer: `(network, images per step) -> optimizer`, called when these are known; None: the LARS above.
        seed: Seed of the draw of labels, of the order of the images and of their views.
        out: Folder of the run, to go on from after an interruption, with the network as it was at first; None: a
            temporary one, kept only where the run fails.
        loop: Any other keyword of `pretrain`, such as `workers`, `chunk_size`, `accelerator`.

    Returns:
        The network, its accuracies and what was logged.

    Raises:
        InputError: A data set has no labels, the classes differ, are fewer than two or not as many as the network's,
            there are fewer images than asked for, or an argument is out of its range.
        Interrupted: As `pretrain`.
        FloatingPointError: As `pretrain`.
    """
    check_network(network, check_classes(train, test), name="network")
    accelerator = accelerator_of(loop)
    ids = labelled(train, labels, seed=seed)
    images = train if labels is None else Subset(train, ids)
    check_classes(images, test)
    batch_size = batch_of(batch_size, images, accelerator)
    loop.setdefault("title", "fine-tune")
    loop.setdefault("warmup_epochs", 0.0)
    return train_and_test(
        Supervised(network, transform),
        network,
        images,
        test,
        test_transform=test_transform,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=(optimizer or _lars)(network, batch_size),
        seed=seed,
        out=out,
        identity={"task": "fine_tune", "network": fingerprint(network), "labelled": digest_of(ids)},
        loop=loop,
    )


def _lars(network: nn.Module, batch_size: int) -> Optimizer:
    return LARS(lars_groups(network, weight_decay=0.0), 0.005 * math.sqrt(batch_size))
