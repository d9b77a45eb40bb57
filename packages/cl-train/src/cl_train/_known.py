"""Data sets by name, each as a pair of training and test images. Nothing is downloaded."""

from pathlib import Path

import numpy as np
import torch

from cl_train._datasets import ArrayDataset
from cl_train._errors import InputError
from cl_train._folder import FolderDataset
from cl_train._in_memory import in_memory
from cl_train._parquet import ParquetDataset


def load_digits() -> tuple[ArrayDataset, ArrayDataset]:
    """The 1,797 handwritten digits that scikit-learn ships: scans of 8 x 8 pixels, one channel, ten classes.

    Needs scikit-learn (`cl-train[data]`). The first 1,297 of `numpy.random.default_rng(0).permutation` are for
    training, the other 500 for testing. Source: Alpaydin and Kaynak, UCI Machine Learning Repository, 1998.

    Returns:
        Training and test images, uint8, (n, 1, 8, 8), white on black.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)  # the scans have 17 levels
    images, labels = torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target[order])
    return ArrayDataset(images[:1297], labels[:1297]), ArrayDataset(images[1297:], labels[1297:])


def load_cifar10(root: str | Path) -> tuple[ArrayDataset, ArrayDataset]:
    """CIFAR-10 as torchvision or Hugging Face keep it: 50,000 and 10,000 colour images of 32 x 32 pixels, in memory.

    Needs torchvision (`cl-train[data]`), which also fetches it: `torchvision.datasets.CIFAR10(root, download=True)`; or
    pyarrow (`cl-train[parquet]`) for the files of Hugging Face, which takes seconds.

    Args:
        root: Folder with `cifar-10-batches-py`, or with `train.parquet` and `test.parquet`.

    Returns:
        Training and test images, uint8, (n, 3, 32, 32).

    Raises:
        InputError: They are not there, or damaged.
    """
    root = Path(root)
    if (root / "cifar-10-batches-py").is_dir():
        return _cifar10_of_torchvision(root)
    files = [root / "train.parquet", root / "test.parquet"]
    if not all(file.is_file() for file in files):
        raise InputError(
            f"`root` must hold the folder cifar-10-batches-py, or train.parquet and test.parquet, {root} does not; to "
            f"fetch it: python -c \"import torchvision; torchvision.datasets.CIFAR10('{root}', download=True)\"."
        )
    train, test = (in_memory(ParquetDataset(file)) for file in files)
    return train, test


def _cifar10_of_torchvision(root: Path) -> tuple[ArrayDataset, ArrayDataset]:
    from torchvision import datasets

    parts = []
    for train in (True, False):
        try:
            part = datasets.CIFAR10(str(root), train=train)
        except RuntimeError as error:  # torchvision's word for a checksum that does not match
            raise InputError(f"{root}/cifar-10-batches-py is incomplete or damaged: {error}") from error
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        parts.append(ArrayDataset(images, torch.tensor(part.targets), classes=part.classes))
    return parts[0], parts[1]


def load_folders(root: str | Path, *, verify: bool = True) -> tuple[FolderDataset, FolderDataset]:
    """Class folders in `root/train` and `root/val`, the layout of ImageNet.

    Args:
        root: Folder of the two.
        verify: Open every file once, see `FolderDataset`.

    Returns:
        Training and test images.

    Raises:
        InputError: A folder is missing or cannot be used, or the two have other classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"`root` must be a folder with train/ and val/, there is no folder {root}.")
    train, test = (FolderDataset(root / part, verify=verify) for part in ("train", "val"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes or []) ^ set(test.classes or []))
        raise InputError(f"{root}/train and {root}/val must have the same class folders, only one has: {odd[:5]}.")
    return train, test
