"""Features of a whole data set by a frozen encoder."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cl_train._datasets import ImageDataset
from cl_train._frozen import frozen
from cl_train._loader import batches


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    dataset: ImageDataset,
    *,
    transform: Callable[[Tensor, Tensor], Tensor],
    batch_size: int = 256,
    workers: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Features of every image, in the order of the data set.

    The encoder runs in inference mode (BatchNorm uses its running statistics) on the device where its parameters are
    (the CPU, if it has none), and gets its own mode back. Every process computes all of them.

    Args:
        encoder: views (n, ...) -> features (n, d).
        dataset: Images.
        transform: `(images, keys) -> views`, such as `cl_augment.EvalTransform`; the keys are the images' numbers.
            Called on one image at a time when they are not in memory.
        batch_size: Images per forward, >= 1; changes nothing but speed.
        workers: Worker processes that read images which are not in memory; None: one for each core, at most 8.

    Returns:
        Features, float32, (n, d), and labels, int64, (n,), or None, both on the CPU.
    """
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    ids = list(torch.arange(len(dataset)).split(batch_size))
    found = []
    with frozen(encoder):
        for batch in batches(dataset, zip(ids, ids, strict=True), cut=transform, workers=workers, device=device):
            views = transform(batch.images, batch.keys) if dataset.images is not None else batch.images
            found.append(encoder(views.contiguous(memory_format=torch.channels_last)).float().cpu())
    return torch.cat(found), dataset.labels
