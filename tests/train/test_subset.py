"""Some images of a data set, and how they are found by name."""

import re

import numpy as np
import pytest
import torch
from cl_train import ArrayDataset, FolderDataset, InputError, Subset
from cl_train._labelled import labelled
from PIL import Image


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}")


def numbered(n=6) -> ArrayDataset:
    return ArrayDataset(
        torch.arange(n).reshape(n, 1, 1, 1).expand(n, 1, 2, 2).to(torch.uint8),
        torch.arange(n) % 3,
        classes=["a", "b", "c"],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> FolderDataset:
    """Two classes that have a file of one name."""
    root = tmp_path_factory.mktemp("images")
    for shade, name in enumerate(["cat/0.png", "cat/1.png", "dog/0.png", "dog/2.png"]):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((3, 3, 3), shade, dtype=np.uint8)).save(root / name)
    return FolderDataset(root)


def test_a_subset_has_the_images_labels_and_classes_of_its_numbers():
    some = Subset(numbered(), [4, 1])
    assert [len(some), some.classes, some.labels.tolist()] == [2, ["a", "b", "c"], [1, 1]]
    assert some.images[:, 0, 0, 0].tolist() == [4, 1]
    assert [int(some.read(i)[0, 0, 0]) for i in range(2)] == [4, 1]
    assert some.name(0) == "image 4"


def test_a_subset_of_files_reads_them(folder):
    some = Subset(folder, torch.tensor([3, 0]))
    assert some.images is None
    assert [int(some.read(i)[0, 0, 0]) for i in range(2)] == [3, 0]
    assert some.name(1).endswith("cat/0.png")


def test_a_subset_of_images_without_labels_has_none():
    assert Subset(ArrayDataset(numbered().images), [0]).labels is None


@pytest.mark.parametrize(("ids", "wrong"), [([0, 6], 6), ([-1, 2], -1)])
def test_a_number_of_no_image_is_refused(ids, wrong):
    with refused(f"`ids` must be in 0 ... 5, got {wrong}."):
        Subset(numbered(), ids)


@pytest.mark.parametrize("ids", [[], [0.5], [[1]], torch.tensor([True])])
def test_what_are_no_numbers_of_images_is_refused(ids):
    with refused("`ids` must be integers of shape (m,) with m >= 1, got"):
        Subset(numbered(), ids)


# Listed


def listed(tmp_path, text: str):
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("as_text", [True, False])
def test_a_list_of_file_names_finds_the_images(folder, tmp_path, as_text):
    path = listed(tmp_path, "2.png\n\ncat/0.png\n")
    assert labelled(folder, str(path) if as_text else path, seed=0).tolist() == [3, 0]


def test_a_name_of_two_images_is_refused(folder, tmp_path):
    with refused("`labels` must list names of images, '0.png' is the end of 2 images' names."):
        labelled(folder, listed(tmp_path, "0.png\n"), seed=0)


@pytest.mark.parametrize("name", ["7.png", "at/0.png", "cow/0.png"])
def test_a_name_of_no_image_is_refused(folder, tmp_path, name):
    with refused(f"`labels` must list names of images, {name!r} is the end of 0 images' names."):
        labelled(folder, listed(tmp_path, name), seed=0)


def test_an_empty_list_is_refused(folder, tmp_path):
    path = listed(tmp_path, "\n")
    with refused(f"`labels` must be a text file with an image's name on each line, {path} is empty."):
        labelled(folder, path, seed=0)


def test_a_list_that_is_not_there_is_refused(folder, tmp_path):
    with refused("`labels` must be a text file with an image's name on each line: [Errno 2]"):
        labelled(folder, tmp_path / "none.txt", seed=0)


def test_no_choice_is_all_images():
    assert labelled(numbered(), None, seed=0).tolist() == list(range(6))


def test_numbers_are_themselves():
    assert labelled(numbered(), torch.tensor([5, 2]), seed=0).tolist() == [5, 2]


@pytest.mark.parametrize("rows", [[True, False], [0, 0, 1], [0.5], [[1]]])
def test_numbers_that_are_none_or_stand_twice_are_refused(rows):
    with refused("`labels` must be numbers of rows, integers of shape (k,), none of them twice."):
        labelled(numbered(), torch.tensor(rows), seed=0)


@pytest.mark.parametrize("rows", [[-1], [6], torch.tensor([], dtype=torch.int64)])
def test_numbers_of_no_image_are_refused(rows):
    with refused("`labels` must be numbers of rows, one or more from 0 to 5."):
        labelled(numbered(), torch.as_tensor(rows), seed=0)


def test_a_name_that_is_listed_twice_is_refused(folder, tmp_path):
    with refused("`labels` must be numbers of rows, integers of shape (k,), none of them twice."):
        labelled(folder, listed(tmp_path, "2.png\n2.png\n"), seed=0)


def test_a_number_is_of_each_class_and_a_share_of_all():
    data = numbered(30)
    assert torch.bincount(data.labels[labelled(data, 2, seed=0)]).tolist() == [2, 2, 2]
    assert torch.bincount(data.labels[labelled(data, 0.1, seed=0)]).tolist() == [1, 1, 1]
