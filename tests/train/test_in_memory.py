"""in_memory: small data sets decoded once."""

import re

import numpy as np
import pytest
import torch
from cl_augment import EvalTransform
from cl_train import ArrayDataset, FolderDataset, InputError, WrappedDataset, in_memory
from PIL import Image


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def folder(root, sizes) -> FolderDataset:
    random = np.random.default_rng(0)
    for number, (h, w) in enumerate(sizes):
        path = root / f"class {number % 3}" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(path)
    return FolderDataset(root)


def test_all_images_are_there_in_their_order(tmp_path):
    data = folder(tmp_path, [(5, 4)] * 150)  # more than a thread takes at a time
    found = in_memory(data)
    assert torch.equal(found.images, torch.stack([data.read(i) for i in range(150)]))


def test_labels_and_classes_come_along(tmp_path):
    data = folder(tmp_path, [(5, 4)] * 6)
    found = in_memory(data)
    assert torch.equal(found.labels, data.labels)
    assert found.classes == data.classes


def test_images_without_labels_stay_without():
    assert in_memory(ArrayDataset(torch.zeros(2, 3, 4, 4))).labels is None


def test_floats_stay_floats():
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(in_memory(WrappedDataset(images, image=None)).images, images)


def test_with_a_size_they_are_centred_squares_resized(tmp_path):
    data = folder(tmp_path, [(9, 20), (12, 12), (30, 10)])
    found = in_memory(data, transform=EvalTransform(10, crop=1.0)).images
    assert (found.dtype, found.shape) == (torch.uint8, (3, 3, 10, 10))
    for image, expected in zip(found, (data.read(i) for i in range(3)), strict=True):
        square = EvalTransform(10, crop=1.0)(expected[None])[0]
        assert (image / 255 - square).abs().max() <= 0.5 / 255 + 1e-6


def test_a_square_of_that_size_is_not_changed(tmp_path):
    data = folder(tmp_path, [(10, 10)])
    assert torch.equal(in_memory(data, transform=EvalTransform(10, crop=1.0)).images[0], data.read(0))


def test_other_sizes_are_refused_without_one(tmp_path):
    data = folder(tmp_path, [(5, 4), (5, 4), (5, 4), (4, 5)])
    with refused(
        "`dataset` must have images of one shape and dtype (or else `transform` make them so), "
        f"{data.files[1]} is 3 x 4 x 5 uint8, {data.files[0]} 3 x 5 x 4 uint8."
    ):
        in_memory(data)


def test_an_image_that_cannot_be_read_is_refused_by_name(tmp_path):
    data = folder(tmp_path, [(5, 4)] * 200)
    open(data.files[120], "w").close()
    with pytest.raises(InputError, match=f"^{re.escape(data.files[120])} cannot be decoded as an image"):
        in_memory(data)
