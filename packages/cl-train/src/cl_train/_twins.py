"""How many images are in a data set more than once."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._folder import FolderDataset

_MOST_SIZES = 50_000  # files whose size is asked for: 0.2 s, or half a minute where a network answers
_MOST_FILES = 512  # read whole: 50 MB of ImageNet
_MOST_TENSORS = 8192  # 1 GB of 224 x 224 pixels
_PIXELS = 64


def share_of_twins(dataset: ImageDataset) -> float:
    """Share of the images that are, bit for bit, in the data set at least twice; an estimate where they are many.

    Images that cannot be twins are told by some of their pixels, files by their size. Of the others 8192 images in
    memory, or 512 files, are compared whole, and of more than 50,000 files only the first are looked at. Nothing is
    decoded: that could fail, or hang, before the first step. Where images are neither in memory nor files of a
    `FolderDataset`, none is known to be a twin, and the answer is 0.

    Args:
        dataset: Images.

    Returns:
        In [0, 1].
    """
    if dataset.images is not None:
        images = dataset.images
        return _share(_some_pixels(images), lambda index: _digest(_bytes(images[index])), most=_MOST_TENSORS)
    if isinstance(dataset, FolderDataset):
        files = dataset.files[:_MOST_SIZES]
        return _share(map(_size, files), lambda index: _content(files[index]), most=_MOST_FILES)
    return 0.0


def _share(keys: Iterable[Hashable], content: Callable[[int], Hashable], *, most: int) -> float:
    """Share with a twin, given something cheap that twins have in common and what tells them apart."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    similar = [group for group in groups.values() if len(group) > 1]
    compared = twins = 0
    # in the order of their first image, which says nothing of how many of a group are twins
    for group in similar:
        if compared >= most:
            break
        group = group[: most - compared]
        contents = Counter(map(content, group))
        compared += len(group)
        twins += sum(number for number in contents.values() if number > 1)
    return twins / max(compared, 1) * sum(map(len, similar)) / sum(map(len, groups.values()))


def _some_pixels(images: Tensor) -> list[bytes]:
    """Of each image a few values spread over it."""
    places = torch.linspace(0, images[0].numel() - 1, min(_PIXELS, images[0].numel()), dtype=torch.float64).long()
    channel, row, column = torch.unravel_index(places, images.shape[1:])
    values = _bytes(images[:, channel, row, column])
    size = len(values) // len(images)
    return [values[start : start + size] for start in range(0, len(values), size)]


def _bytes(values: Tensor) -> bytes:
    return values.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


# A file that cannot be read has no twin here: it may be one that is allowed to be bad, and is named in its turn.
def _size(file: str) -> Hashable:
    try:
        return os.stat(file).st_size
    except OSError:
        return file


def _content(file: str) -> Hashable:
    try:
        return _digest(Path(file).read_bytes())
    except OSError:
        return file
