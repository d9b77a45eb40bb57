"""Other labels for the same images, and data sets of which only some images keep theirs."""

import re

import pytest
import torch
from cl_train import ArrayDataset, InputError, Relabelled, keep_labels


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def data(n: int = 12) -> ArrayDataset:
    images = torch.arange(n).view(n, 1, 1, 1).expand(n, 1, 2, 2).to(torch.uint8)
    return ArrayDataset(images, torch.arange(n) % 3, classes=["a", "b", "c"])


class Named(ArrayDataset):
    """Images with names like files'."""

    def name(self, index: int) -> str:
        return f"folder/{index:02}.png"


# Relabelled


def test_relabelled_images_have_the_labels_that_were_given():
    other = Relabelled(data(4), torch.tensor([2, -1, 0, 1], dtype=torch.int32))
    assert other.labels.tolist() == [2, -1, 0, 1]
    assert other.labels.dtype == torch.int64
    assert other.classes == ["a", "b", "c"]
    assert other.targets(torch.tensor([1, 0])).tolist() == [-1, 2]


def test_relabelled_images_are_the_same_images():
    own = Named(data(4).images)
    other = Relabelled(own, torch.tensor([0, 1, -1, 0]))
    assert other.images is own.images
    assert [len(other), other.name(3), int(other.read(3)[0, 0, 0])] == [4, "folder/03.png", 3]


def test_the_data_set_itself_keeps_its_labels():
    own = data(4)
    Relabelled(own, torch.tensor([2, 2, 2, -1]))
    keep_labels(own, 0)
    assert own.labels.tolist() == [0, 1, 2, 0]


def test_classes_are_the_names_that_were_given_or_else_numbers():
    plain, labels = ArrayDataset(data(3).images), torch.tensor([0, -1, 2])
    assert Relabelled(plain, labels).classes == ["0", "1", "2"]
    assert Relabelled(data(3), labels, classes=("x", "y", "z", "w")).classes == ["x", "y", "z", "w"]


def test_images_may_all_be_without_label():
    assert Relabelled(data(3), torch.full((3,), -1)).labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, -2, 1]), "`labels` must be at least -1, got -2."),
        (torch.tensor([0, 3, 1]), "`labels` must be below the number of `classes`, 3, got 3."),
        (torch.tensor([0, 1]), "`labels` must be integers of shape (3,), got torch.int64 (2,)."),
        (torch.tensor([0.0, 1.0, 1.0]), "`labels` must be integers of shape (3,), got torch.float32 (3,)."),
    ],
)
def test_labels_that_are_none_of_the_images_are_refused(labels, message):
    with refused(message):
        Relabelled(data(3), labels)


# Some keep their labels


def kept(of: Relabelled) -> list[int]:
    """Numbers of the images that have labels; their labels must be their own."""
    ids = (of.labels >= 0).nonzero().flatten()
    assert torch.equal(of.labels[ids], data().labels[ids])
    return ids.tolist()


def test_no_image_keeps_its_label_of_0():
    none = keep_labels(data(), 0)
    assert kept(none) == []
    assert none.classes == ["a", "b", "c"]


def test_all_images_keep_their_labels_of_none():
    assert kept(keep_labels(data(), None)) == list(range(12))


@pytest.mark.parametrize("amount", [1, 3])
def test_so_many_of_each_class_keep_their_labels(amount):
    found = keep_labels(data(), amount)
    assert len(kept(found)) == 3 * amount
    assert torch.bincount(found.labels[found.labels >= 0]).tolist() == [amount] * 3


def test_a_share_of_all_keeps_its_labels():
    found = keep_labels(data(), 0.5)
    assert len(kept(found)) == 6
    assert torch.bincount(found.labels[found.labels >= 0]).tolist() == [2, 2, 2]


def test_images_that_are_numbered_keep_their_labels():
    assert kept(keep_labels(data(), torch.tensor([7, 0, 4]))) == [0, 4, 7]


def test_images_that_a_file_names_keep_their_labels(tmp_path):
    (tmp_path / "list.txt").write_text("03.png\nfolder/10.png\n")
    own = Named(data().images, data().labels, classes=["a", "b", "c"])
    assert kept(keep_labels(own, tmp_path / "list.txt")) == [3, 10]


def test_which_images_keep_their_labels_is_a_function_of_the_seed():
    draws = [tuple(kept(keep_labels(data(), 1, seed=seed))) for seed in (0, 0, *range(1, 9))]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 2


def test_images_without_labels_have_none_to_keep():
    with refused("`dataset` must have labels to keep."):
        keep_labels(ArrayDataset(data().images), 0)


@pytest.mark.parametrize("amount", [-1, 0.0, True, False])
def test_an_amount_of_labels_that_is_none_is_refused(amount):
    rule = "`labels` must be a whole number for each class, at least 1, or a share of all in (0, 1)"
    with refused(f"{rule}, got {amount}."):
        keep_labels(data(), amount)
