"""Accuracies of a classifier on a test set, over all processes."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._frozen import frozen
from cl_train._loader import batches
from cl_train._scores import Scores, count_hits, scores_of


@torch.no_grad()
def judge(
    network: nn.Module,
    test: ImageDataset,
    *,
    transform: Callable[[Tensor, Tensor], Tensor],
    share: int,
    accelerator: Accelerator,
    workers: int | None,
    max_bad_images: float,
) -> Scores:
    """Accuracies of a network in inference mode, each process on its own part of the test set, no image twice.

    Args:
        network: views -> logits (n, classes), on the device.
        test: Labelled images.
        transform: `(images, keys) -> views`; the keys are the images' numbers.
        share: Images of a process at a time, >= 1.
        accelerator: The processes, and their precision.
        workers: As in `pretrain`.
        max_bad_images: Share of the images that may be unreadable.

    Raises:
        InputError: More images than allowed cannot be read, on all processes.
    """
    own = torch.arange(accelerator.process_index, len(test), accelerator.num_processes)
    ids = list(own.split(share))
    assert test.labels is not None  # checked before
    hits = torch.zeros(3, len(test.classes or []), dtype=torch.int64, device=accelerator.device)
    unread: list[str] = []
    source = batches(
        test,
        zip(ids, ids, strict=True),
        cut=transform,
        workers=workers,
        device=accelerator.device,
        host=True,
        skip_unreadable=True,  # so that what one process cannot read ends all of them
        least=0,
    )
    with frozen(network):
        for batch in source:
            unread += batch.skipped
            if len(batch.keys) == 0:
                continue
            batch = batch.to(accelerator.device)
            views = batch.images if test.images is None else transform(batch.images, batch.keys)
            with accelerator.autocast():
                logits = network(views.contiguous(memory_format=torch.channels_last))
            assert batch.labels is not None
            hits += count_hits(logits, batch.labels)
    unread = gather_object(unread)
    if len(unread) > (max(1, max_bad_images * len(test)) if max_bad_images > 0 else 0):
        raise InputError(
            f"`max_bad_images` is {max_bad_images:g} of all, {len(unread)} of {len(test)} test images could not be "
            f"read, such as {min(unread)}."
        )
    return scores_of(accelerator.reduce(hits, reduction="sum"))
