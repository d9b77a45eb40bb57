"""Several domains as one data set: whose image is whose, and what its class is called."""

import re

import numpy as np
import pytest
import torch
from cl_train import ArrayDataset, DomainDataset, FolderDataset, InputError, Relabelled, Subset
from PIL import Image


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def shades(first: int, n: int, *, size: int = 2, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Images that are told apart by their only value, first, first + 1, ..."""
    return torch.arange(first, first + n).view(n, 1, 1, 1).expand(n, 3, size, size).to(dtype)


def rendered() -> ArrayDataset:
    return ArrayDataset(shades(0, 4), [0, 1, 2, 0], classes=["ant", "bee", "cat"])


def photographed() -> ArrayDataset:
    """In other numbers: a class that is not rendered, and one rendered class missing."""
    return ArrayDataset(shades(10, 3), [1, 0, 2], classes=["cat", "dog", "ant"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    for shade, name in enumerate(["bee/0.png", "cat/0.png"]):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((5, 3, 3), 100 + shade, dtype=np.uint8)).save(root / name)
    return root


# Classes


def test_classes_are_the_same_where_their_names_are():
    both = DomainDataset({"synthetic": rendered(), "real": photographed()})
    assert both.classes == ["ant", "bee", "cat", "dog"]
    assert both.labels.tolist() == [0, 1, 2, 0, 3, 2, 0]
    assert both.labels.dtype == torch.int64


def test_every_image_has_the_class_name_that_its_own_data_set_gives_it():
    parts = [rendered(), photographed(), rendered()]
    together = DomainDataset(dict(zip("abc", parts, strict=True)))
    expected = [part.classes[label] for part in parts for label in part.labels.tolist()]
    assert [together.classes[label] for label in together.labels.tolist()] == expected


def test_images_of_a_domain_without_labels_have_none():
    plain = ArrayDataset(shades(10, 3))
    both = DomainDataset({"real": plain, "synthetic": rendered()})
    assert both.classes == ["ant", "bee", "cat"]
    assert both.labels.tolist() == [-1, -1, -1, 0, 1, 2, 0]


def test_an_image_without_label_keeps_none_in_a_domain_that_has_others():
    some = Relabelled(photographed(), torch.tensor([-1, 2, -1]))
    both = DomainDataset({"synthetic": rendered(), "real": some})
    assert both.labels.tolist() == [0, 1, 2, 0, -1, 0, -1]


# Domains, and the images in them


def test_domains_are_numbered_in_their_order_and_images_through():
    many = DomainDataset({"x": photographed(), "y": rendered(), "z": ArrayDataset(shades(20, 1))})
    assert many.domain_names == ["x", "y", "z"]
    assert [len(many), many.starts] == [8, [0, 3, 7]]
    assert many.domains.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]


def test_images_are_read_from_their_own_domain():
    many = DomainDataset({"x": photographed(), "y": rendered(), "z": ArrayDataset(shades(20, 1))})
    assert [int(many.read(i)[0, 0, 0]) for i in range(8)] == [10, 11, 12, 0, 1, 2, 3, 20]


def test_an_image_is_called_by_its_domain_and_its_own_name(folder):
    both = DomainDataset({"synthetic": rendered(), "real": FolderDataset(folder)})
    assert both.name(3) == "synthetic: image 3"
    assert re.fullmatch(r"real: .*bee/0\.png", both.name(4))


def test_targets_are_class_and_domain():
    both = DomainDataset({"synthetic": rendered(), "real": Relabelled(photographed(), torch.tensor([1, -1, 2]))})
    assert both.targets(torch.tensor([5, 0, 4, 2])).tolist() == [[-1, 1], [0, 0], [3, 1], [2, 0]]


def test_targets_of_some_of_the_images_are_theirs():
    both = DomainDataset({"synthetic": rendered(), "real": photographed()})
    some = Subset(both, [6, 1, 4])
    assert some.targets(torch.tensor([2, 0])).tolist() == [[3, 1], [0, 1]]


# Images together


def test_images_in_memory_that_are_alike_are_one_tensor():
    both = DomainDataset({"synthetic": rendered(), "real": photographed()})
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 12]


@pytest.mark.parametrize(
    "other",
    [ArrayDataset(shades(10, 3, size=4)), ArrayDataset(shades(0, 2, dtype=torch.float32))],
    ids=["size", "dtype"],
)
def test_images_that_differ_are_read_one_by_one(other):
    both = DomainDataset({"synthetic": rendered(), "real": other})
    assert both.images is None
    assert torch.equal(both.read(5), other.read(1))


def test_images_of_which_some_are_files_are_read_one_by_one(folder):
    both = DomainDataset({"synthetic": rendered(), "real": FolderDataset(folder, labelled=False)})
    assert both.images is None
    assert [tuple(both.read(i).shape) for i in (3, 4)] == [(3, 2, 2), (3, 5, 3)]
    assert int(both.read(5)[0, 0, 0]) == 101


# What is refused


@pytest.mark.parametrize("datasets", [{}, {"real": rendered()}], ids=["none", "one"])
def test_fewer_than_two_domains_are_refused(datasets):
    with refused(f"`datasets` must be of at least 2 domains, got {len(datasets)}."):
        DomainDataset(datasets)


def test_domains_of_which_none_has_labels_are_refused():
    with refused("`datasets` must have labels in at least one domain, none has any."):
        DomainDataset({"a": ArrayDataset(shades(0, 2)), "b": ArrayDataset(shades(0, 2))})


# What a loss is told of any data set's images


def test_targets_of_a_data_set_are_its_labels():
    assert rendered().targets(torch.tensor([3, 1, 2, 1])).tolist() == [0, 1, 2, 1]


def test_targets_of_a_data_set_without_labels_are_none():
    assert ArrayDataset(shades(0, 2)).targets(torch.tensor([1])) is None


def test_targets_of_a_subset_are_those_of_its_own_numbers():
    assert Subset(rendered(), [2, 3, 1]).targets(torch.tensor([2, 0])).tolist() == [1, 2]


def test_targets_of_a_subset_without_labels_are_none():
    assert Subset(ArrayDataset(shades(0, 2)), [1]).targets(torch.tensor([0])) is None
