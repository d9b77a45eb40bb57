"""ArrayDataset: images in memory, and what it refuses."""

import re

import pytest
import torch
from cl_train import ArrayDataset, InputError


def images(n=4, dtype=torch.uint8) -> torch.Tensor:
    return torch.arange(n * 3 * 2 * 2).reshape(n, 3, 2, 2).to(dtype)


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def test_read_returns_the_image_of_that_number():
    data = ArrayDataset(images())
    assert torch.equal(data.read(2), images()[2])


def test_the_length_is_the_number_of_images():
    assert len(ArrayDataset(images(5))) == 5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_images_keep_their_dtype(dtype):
    assert ArrayDataset(images(dtype=dtype)).read(0).dtype == dtype


def test_without_labels_there_are_no_classes():
    data = ArrayDataset(images())
    assert data.labels is None
    assert data.classes is None


def test_labels_become_int64():
    data = ArrayDataset(images(), torch.tensor([1, 0, 2, 1], dtype=torch.uint8))
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [1, 0, 2, 1]


def test_classes_are_named_by_their_numbers():
    assert ArrayDataset(images(), torch.tensor([1, 0, 2, 1])).classes == ["0", "1", "2"]


def test_given_classes_keep_their_names_also_without_images():
    data = ArrayDataset(images(), torch.tensor([1, 0, 1, 1]), classes=("cat", "dog", "elk"))
    assert data.classes == ["cat", "dog", "elk"]


@pytest.mark.parametrize("shape", [(4, 3, 2), (0, 3, 2, 2)])
def test_other_shapes_of_images_are_refused(shape):
    with refused(f"`images` must have shape (n, c, h, w) with n >= 1, got {shape}."):
        ArrayDataset(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_other_dtypes_of_images_are_refused(dtype):
    with refused(f"`images` must be uint8 or float in [0, 1], got {dtype}."):
        ArrayDataset(torch.zeros(4, 3, 2, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (torch.zeros(3, dtype=torch.int64), "torch.int64 (3,)"),
        (torch.zeros(4, 2, dtype=torch.int64), "torch.int64 (4, 2)"),
        (torch.zeros(4), "torch.float32 (4,)"),
    ],
)
def test_labels_that_are_not_one_integer_per_image_are_refused(labels, got):
    with refused(f"`labels` must be integers of shape (4,), got {got}."):
        ArrayDataset(images(), labels)


def test_negative_labels_are_refused():
    with refused("`labels` must be at least 0, got -1."):
        ArrayDataset(images(), torch.tensor([0, -1, 1, 0]))


def test_labels_beyond_the_classes_are_refused():
    with refused("`labels` must be below the number of `classes`, 2, got 2."):
        ArrayDataset(images(), torch.tensor([0, 2, 1, 0]), classes=["a", "b"])


def test_the_error_is_also_a_value_error():
    with pytest.raises(ValueError, match="`images`"):
        ArrayDataset(torch.zeros(3))
