"""Linear evaluation as the paper does it: frozen encoder, augmented images, one linear layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._frozen import frozen
from cl_train._launch import make_accelerator
from cl_train._loader import batches, epoch_ids
from cl_train._progress import Progress
from cl_train._schedule import scaled_lr, warmup_cosine
from cl_train._scores import Scores, count_hits, scores_of

Transform = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Features:
    """Frozen features of batches: the encoder in inference mode, without gradient, in the run's precision."""

    encoder: nn.Module
    accelerator: Accelerator
    workers: int | None
    max_bad_images: float

    def __call__(
        self,
        dataset: ImageDataset,
        ids: list[Tensor],
        keys: list[Tensor],
        transform: Transform,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        shares, device = zip(ids, keys, strict=True), self.accelerator.device
        source = batches(
            dataset,
            shares,
            cut=transform,
            workers=self.workers,
            device=device,
            skip_unreadable=self.max_bad_images > 0,
            least=1,
        )
        unread: set[str] = set()
        for batch in source:
            unread.update(batch.skipped)
            with torch.no_grad():  # views in full precision, the encoder in that of the run
                views = transform(batch.images, batch.keys) if dataset.images is not None else batch.images
            with torch.no_grad(), self.accelerator.autocast():
                features = self.encoder(views.contiguous(memory_format=torch.channels_last)).float()
            assert batch.labels is not None  # checked by linear_eval
            yield features, batch.labels
        if len(unread) > max(1, self.max_bad_images * len(dataset)):
            share = f"{len(unread)} of {len(dataset)}"
            raise InputError(f"`max_bad_images` is {self.max_bad_images:g} of all, {share} could not be read.")


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
    workers: int | None = None,
    max_steps: int | None = None,
    max_bad_images: float = 0.0,
    accelerator: Accelerator | None = None,
    title: str = "linear eval",
    progress: bool = True,
) -> Scores:
    """Top-1 and top-5 of a linear layer on a frozen encoder, the number that papers report.

    The encoder runs in inference mode and is not changed. Defaults are the paper's: 90 epochs, batch 4096, Nesterov
    momentum 0.9 with learning rate 0.1 * batch / 256 falling along a cosine, no decay, crop and flip in training
    (arXiv:2002.05709, App. B.5 and B.6).

    Args:
        encoder: views (n, c, size, size) -> features (n, d), with an attribute `feature_dim`.
        train: Labelled images.
        test: Labelled images of the same classes.
        transform: `(images, keys) -> views` for training, such as `cl_augment.LinearEvalAugment`.
        test_transform: Likewise for the test, such as `cl_augment.EvalTransform`.
        epochs: Passes over the training images, >= 1.
        batch_size: Images per step over all processes; cut to all images and to a multiple of the processes.
        base_lr: Learning rate at a batch of 256, > 0.
        seed: Seed of the order of the images and of their views.
        workers: Worker processes per process that read images which are not in memory; None: one for each core, at
            most 8.
        max_steps: Stop training after so many steps.
        max_bad_images: Share of the images of a data set that a process may find unreadable, in [0, 1). At 0 the first
            one ends the evaluation, by name; above, they are left out, of the accuracies too.
        accelerator: By default `make_accelerator()`.
        title: Of the progress bar.
        progress: Whether the main process shows one.

    Returns:
        Accuracies on all test images that can be read, the same on every process.

    Raises:
        InputError: A data set has no labels, the classes differ, or an argument is out of its range.
    """
    accelerator = make_accelerator() if accelerator is None else accelerator
    if train.labels is None or test.labels is None:
        raise InputError("`train` and `test` must have labels.")
    if train.classes != test.classes:
        raise InputError(f"`train` and `test` must have the same classes, got {train.classes} and {test.classes}.")
    batch_size = min(batch_size, len(train)) // accelerator.num_processes * accelerator.num_processes
    if not 0 <= max_bad_images < 1:
        raise InputError(f"`max_bad_images` must be in [0, 1), got {max_bad_images}.")
    if max_steps is not None and max_steps < 1:
        raise InputError(f"`max_steps` must be at least 1, got {max_steps}.")
    for name, value in {"epochs": epochs, "batch_size": batch_size, "base_lr": base_lr}.items():
        if value <= 0:
            raise InputError(f"`{name}` must be positive, got {value}.")
    encoder.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = _Features(encoder, accelerator, workers, max_bad_images)
    total_steps = epochs * (len(train) // batch_size)
    last = total_steps if max_steps is None else min(max_steps, total_steps)
    shown = Progress(total=last, done=0, title=title, visible=progress and accelerator.is_main_process)
    with frozen(encoder):
        width: int = encoder.feature_dim  # type: ignore[assignment]
        layer = nn.Linear(width, len(train.classes or []), device=accelerator.device)
        _train(layer, train, features, transform, batch_size, scaled_lr(base_lr, batch_size), seed, total_steps, shown)
        return _test(layer, test, features, test_transform, batch_size, accelerator)


def _train(
    layer: nn.Linear,
    train: ImageDataset,
    features: _Features,
    transform: Transform,
    batch_size: int,
    lr: float,
    seed: int,
    total_steps: int,
    shown: Progress,
) -> None:
    """Fit the layer, from zero, until the progress bar is full."""
    accelerator = features.accelerator
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9, nesterov=True)
    epoch = 0
    while shown.done < shown.total:
        ids = epoch_ids(
            len(train),
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )[: shown.total - shown.done]
        keys = torch.from_numpy(np.random.default_rng([seed, epoch, 1]).integers(1 << 62, size=len(train)))
        for x, y in features(train, ids, [keys[numbers] for numbers in ids], transform):
            optimizer.param_groups[0]["lr"] = lr * warmup_cosine(shown.done, warmup_steps=0, total_steps=total_steps)
            optimizer.zero_grad()
            loss = functional.cross_entropy(layer(x), y)
            loss.backward()
            for parameter in layer.parameters():  # two small tensors, in full precision: no need for DDP
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
            optimizer.step()
            shown.step()
        shown.tell({"loss": loss.item()})
        epoch += 1
    shown.close()


def _test(
    layer: nn.Module,
    test: ImageDataset,
    features: _Features,
    transform: Transform,
    batch_size: int,
    accelerator: Accelerator,
) -> Scores:
    """Accuracies over all processes, each on its own part of the test set, no image twice."""
    own = torch.arange(accelerator.process_index, len(test), accelerator.num_processes)
    ids = list(own.split(max(1, batch_size // accelerator.num_processes)))
    found = torch.zeros(3, len(test.classes or []), dtype=torch.int64, device=accelerator.device)
    with torch.no_grad():
        for x, y in features(test, ids, ids, transform):
            found += count_hits(layer(x), y)
    return scores_of(accelerator.reduce(found, reduction="sum"))
