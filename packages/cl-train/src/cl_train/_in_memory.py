"""A small data set, decoded once."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from cl_train._datasets import ArrayDataset, ImageDataset
from cl_train._errors import InputError
from cl_train._labels import check_all_labelled
from cl_train._launch import cores_per_process

_TASK = 64  # images that a thread reads at a time


Transform = Callable[[Tensor], Tensor]


def in_memory(dataset: ImageDataset, *, transform: Transform | None = None, progress: bool = True) -> ArrayDataset:
    """All images of a data set as one tensor: with small images, reading them takes longer than training on them.

    Args:
        dataset: Images; read by several threads.
        transform: What makes them equal in size: (1, c, h, w) -> (1, c, size, size), floats in [0, 1], which are
            rounded to uint8; such as `cl_augment.EvalTransform(size, crop=1.0)`, the largest centred square resized.
            None: images stay as they are and must be of equal size.
        progress: Whether to show a bar on a terminal if it takes more than a few seconds.

    Returns:
        Images (n, c, h, w), uint8 unless those of the data set are others and stay, with their labels.

    Raises:
        InputError: An image cannot be read, or has another size, number of channels or dtype than the first.
    """
    if dataset.labels is not None:
        check_all_labelled(dataset.labels, name="dataset")
    first = _read(dataset, 0, transform)
    images = first.new_empty(len(dataset), *first.shape)

    def fill(numbers: range) -> int:
        for number in numbers:
            image = _read(dataset, number, transform)
            if image.shape != first.shape or image.dtype != first.dtype:
                raise InputError(
                    f"`dataset` must have images of one shape and dtype (or else `transform` make them so), "
                    f"{dataset.name(number)} is {_words(image)}, {dataset.name(0)} {_words(first)}."
                )
            images[number] = image
        return len(numbers)

    hidden = not (progress and sys.stderr.isatty())
    tasks = [range(start, min(start + _TASK, len(dataset))) for start in range(0, len(dataset), _TASK)]
    with (
        ThreadPoolExecutor(cores_per_process()) as pool,
        tqdm(total=len(dataset), desc="reading images", unit="image", delay=3, disable=hidden) as bar,
    ):
        for count in pool.map(fill, tasks):
            bar.update(count)
    return ArrayDataset(images, dataset.labels, classes=dataset.classes)


def _read(dataset: ImageDataset, index: int, transform: Transform | None) -> Tensor:
    image = dataset.read(index)
    return image if transform is None else torch.round(transform(image[None])[0] * 255).to(torch.uint8)


def _words(image: Tensor) -> str:
    c, h, w = image.shape
    return f"{c} x {h} x {w} {str(image.dtype).removeprefix('torch.')}"
