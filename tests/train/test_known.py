"""Data sets by name: digits, CIFAR-10 in torchvision's layout, folders of train and val."""

import hashlib
import pickle
import re

import numpy as np
import pytest
import torch
from cl_train import InputError, load_cifar10, load_digits, load_folders
from PIL import Image
from sklearn import datasets


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


# Digits


def test_digits_are_1297_for_training_and_500_for_testing():
    train, test = load_digits()
    assert tuple(train.images.shape) == (1297, 1, 8, 8)
    assert tuple(test.images.shape) == (500, 1, 8, 8)


def test_digits_are_split_by_numpys_permutation():
    train, test = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    target = datasets.load_digits().target
    assert train.labels.tolist() == target[order[:1297]].tolist()
    assert test.labels.tolist() == target[order[1297:]].tolist()


def test_digits_are_sklearns_pixels_stretched_to_the_range_of_uint8():
    train, test = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    expected = datasets.load_digits().images[order] * 255 / 16
    found = torch.cat([train.images, test.images]).squeeze(1).double().numpy()
    assert np.abs(found - expected).max() <= 0.5 + 1e-9
    assert (found.min(), found.max()) == (0, 255)


def test_digits_have_ten_classes_in_both_parts():
    train, test = load_digits()
    assert train.classes == test.classes == [str(digit) for digit in range(10)]
    assert train.images.dtype == torch.uint8


# CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Three images a file in torchvision's layout, with the checksums that torchvision will ask for."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = random.integers(0, 256, (3, 3072), dtype=np.uint8)
        return [name, write(name, {"data": pixels, "labels": random.integers(0, 10, 3).tolist()})]

    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path


def test_cifar10_is_read_as_torchvision_keeps_it(cifar):
    train, test = load_cifar10(cifar)
    raw = [pickle.loads((cifar / "cifar-10-batches-py" / f"data_batch_{i}").read_bytes()) for i in range(1, 6)]
    pixels = torch.from_numpy(np.concatenate([part["data"] for part in raw])).reshape(15, 3, 32, 32)
    assert torch.equal(train.images, pixels)
    assert train.labels.tolist() == [label for part in raw for label in part["labels"]]
    assert tuple(test.images.shape) == (3, 3, 32, 32)


def test_cifar10_has_the_names_of_the_classes_in_both_parts(cifar):
    train, test = load_cifar10(cifar)
    assert train.classes == test.classes
    assert train.classes[3] == "cat"


def test_missing_cifar10_is_refused_with_the_command_that_fetches_it(tmp_path):
    with refused(
        f"`root` must hold the folder cifar-10-batches-py, or train.parquet and test.parquet, {tmp_path} does not; to "
        f"fetch it: python -c \"import torchvision; torchvision.datasets.CIFAR10('{tmp_path}', download=True)\"."
    ):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar10_is_refused(cifar, file):
    (cifar / "cifar-10-batches-py" / file).write_bytes(b"damaged")
    with pytest.raises(
        InputError, match=f"^{re.escape(str(cifar))}/cifar-10-batches-py is incomplete or damaged: .*corrupt"
    ):
        load_cifar10(cifar)


def test_incomplete_cifar10_is_refused(cifar):
    (cifar / "cifar-10-batches-py" / "data_batch_5").unlink()
    with pytest.raises(InputError, match="is incomplete or damaged"):
        load_cifar10(cifar)


# Folders


def make(root, part: str, *classes: str):
    for name in classes:
        (root / part / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / part / name / "x.png")


def test_folders_are_train_and_val(tmp_path):
    make(tmp_path, "train", "cat", "dog")
    make(tmp_path, "val", "cat", "dog")
    train, test = load_folders(tmp_path)
    assert (train.root, test.root) == (tmp_path / "train", tmp_path / "val")
    assert train.classes == test.classes == ["cat", "dog"]


def test_a_missing_folder_of_train_and_val_is_refused(tmp_path):
    with refused(f"`root` must be a folder with train/ and val/, there is no folder {tmp_path / 'no'}."):
        load_folders(tmp_path / "no")


def test_a_missing_part_is_refused(tmp_path):
    make(tmp_path, "train", "cat")
    with refused(f"`root` must be a folder of class folders, there is no folder {tmp_path / 'val'}."):
        load_folders(tmp_path)


def test_parts_with_other_classes_are_refused(tmp_path):
    make(tmp_path, "train", "ant", "cat", "dog")
    make(tmp_path, "val", "cat", "dog", "elk")
    with refused(
        f"{tmp_path}/train and {tmp_path}/val must have the same class folders, only one has: ['ant', 'elk']."
    ):
        load_folders(tmp_path)


def test_verify_is_handed_on_to_both_parts(tmp_path, monkeypatch):
    make(tmp_path, "train", "cat")
    make(tmp_path, "val", "cat")
    monkeypatch.setattr(Image, "open", None)  # any use would raise
    train, test = load_folders(tmp_path, verify=False)
    assert (len(train), len(test)) == (1, 1)
