"""WrappedDataset: torchvision's data sets, Hugging Face's, and anything else with a length and items."""

import re
import warnings

import numpy as np
import pytest
import torch
from cl_train import InputError, WrappedDataset
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


class Pairs(Dataset):
    """As torchvision's: (image, label), with `targets` and `classes`."""

    def __init__(self, images, targets, classes):
        self.images, self.targets, self.classes = images, targets, classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


class Rows(Dataset):
    """As Hugging Face's: a dictionary for each row."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"img": self.images[index], "label": index}


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise self.error


def picture(colour=(1, 2, 3)) -> Image.Image:
    return Image.new("RGB", (4, 3), colour)


def pairs() -> Pairs:
    return Pairs([picture((i, 2, 3)) for i in range(3)], [1, 0, 1], ["cat", "dog"])


def test_pil_images_are_read_as_rgb():
    image = WrappedDataset(pairs()).read(2)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 3, 4))
    assert image[:, 0, 0].tolist() == [2, 2, 3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_tensors_are_read_as_they_are(dtype):
    images = torch.rand(2, 1, 5, 4).mul(1 if dtype.is_floating_point else 255).to(dtype)
    assert torch.equal(WrappedDataset(Pairs(images, [0, 0], None)).read(1), images[1])


def test_labels_and_classes_are_those_of_the_data_set():
    data = WrappedDataset(pairs())
    assert (data.labels.tolist(), data.classes, data.images, len(data)) == ([1, 0, 1], ["cat", "dog"], None, 3)


def test_no_labels_are_taken_if_none_are_wanted():
    assert WrappedDataset(pairs(), labels=None).labels is None


def test_a_data_set_without_targets_has_no_labels():
    assert WrappedDataset(Subset(pairs(), [0, 2])).labels is None


@pytest.mark.parametrize("labels", [[0, 2], torch.tensor([0, 2]), np.array([0, 2])])
def test_labels_can_be_given(labels):
    data = WrappedDataset(Subset(pairs(), [0, 2]), labels=labels, classes=["a", "b", "c"])
    assert data.labels.tolist() == [0, 2]
    assert data.labels.dtype == torch.int64
    assert data.classes == ["a", "b", "c"]


def test_an_image_can_be_a_part_of_a_dictionary():
    data = WrappedDataset(Rows([picture()] * 2), image="img", labels=[0, 1])
    assert data.read(1)[:, 0, 0].tolist() == [1, 2, 3]


def test_an_item_can_be_the_image():
    assert WrappedDataset([picture()], image=None).read(0).shape == (3, 3, 4)


def test_a_data_set_of_torchvision_is_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision.datasets import ImageFolder
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        picture((7, 8, 9)).save(tmp_path / name / "x.png")
    data = WrappedDataset(ImageFolder(tmp_path))
    assert (data.labels.tolist(), data.classes) == ([0, 1], ["cat", "dog"])
    assert data.read(1)[:, 0, 0].tolist() == [7, 8, 9]


def test_the_name_of_an_image_is_its_number_and_the_kind_of_data_set():
    assert WrappedDataset(pairs()).name(2) == "image 2 of Pairs"


@pytest.mark.parametrize(
    "error", [OSError("truncated"), SyntaxError("broken PNG"), Image.DecompressionBombError("too large")]
)
def test_an_image_that_cannot_be_read_is_refused_by_its_number(error):
    with refused(f"image 1 of Broken cannot be read: {error}."):
        WrappedDataset(Broken(error)).read(1)


def test_a_file_that_the_data_set_only_opened_is_refused_when_it_is_read(tmp_path):
    Image.effect_noise((32, 32), 100).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-200])
    with (
        Image.open(tmp_path / "x.png") as opened,
        pytest.raises(InputError, match=r"^image 0 of list cannot be read: .*truncated"),
    ):
        WrappedDataset([opened], image=None).read(0)


@pytest.mark.parametrize("error", [ValueError("a mistake"), KeyError("a mistake")])
def test_a_mistake_in_the_data_set_is_not_taken_for_a_damaged_image(error):
    with pytest.raises(type(error), match="a mistake") as caught:
        WrappedDataset(Broken(error)).read(1)
    assert caught.value is error


def test_pixels_without_a_known_range_are_refused():
    with refused("image 0 of list cannot be read: its pixels (mode F) have 32 bits and no known range."):
        WrappedDataset([Image.new("F", (2, 2))], image=None).read(0)


@pytest.mark.parametrize(
    ("item", "got"), [(np.zeros((2, 2, 3)), "ndarray"), (torch.zeros(2, 2), "a tensor (2, 2)"), ("x.png", "str")]
)
def test_what_is_no_image_is_refused(item, got):
    with refused(f"image 0 of list must be a PIL image or a tensor (c, h, w), got {got}."):
        WrappedDataset([item], image=None).read(0)


@pytest.mark.parametrize(
    ("item", "image", "kind"),
    [({"img": 1}, 0, "dict"), ({"img": 1}, "image", "dict"), ((1, 2), "img", "tuple"), ((1, 2), 2, "tuple")],
)
def test_a_part_that_items_do_not_have_is_refused(item, image, kind):
    message = "`image` must be a place in a tuple, a name in a dictionary or None, got "
    with refused(f"{message}{image!r} for image 0 of list, a {kind}."):
        WrappedDataset([item], image=image).read(0)


def test_a_data_set_without_an_order_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with refused("`dataset` must have an order (map-style), got Stream."):
        WrappedDataset(Stream())


def test_an_empty_data_set_is_refused():
    with refused("`dataset` must hold images, list holds none."):
        WrappedDataset([])


def test_labels_of_another_number_are_refused():
    with refused("`labels` must be integers of shape (3,), got torch.int64 (2,)."):
        WrappedDataset(pairs(), labels=[0, 1])


def test_labels_that_are_no_integers_are_refused():
    with refused("`labels` must be integers: 'str' object cannot be interpreted as an integer."):
        WrappedDataset(pairs(), labels=["a", "b", "c"])


def test_another_word_for_labels_is_refused():
    with refused("`labels` must be integers, 'targets' or None, got 'label'."):
        WrappedDataset(pairs(), labels="label")
