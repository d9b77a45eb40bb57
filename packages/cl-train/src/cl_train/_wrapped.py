"""Data sets of other libraries."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from cl_train._datasets import ImageDataset
from cl_train._decode import as_rgb
from cl_train._errors import InputError
from cl_train._labels import check_labels

# What reading a damaged image raises; ValueError, too, may be PIL's, but is as well a mistake in the data set's code.
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)


class WrappedDataset(ImageDataset):
    """A map-style data set of another library, such as torchvision's or Hugging Face's: `dataset[i]` has image i.

    PIL images are read as RGB; tensors (c, h, w), uint8 or float in [0, 1], as they are. It should do nothing random
    and change no image: views are made of what it returns. With Hugging Face,

        data = datasets.load_dataset(..., split="train")
        WrappedDataset(data, image="image", labels=data["label"], classes=data.features["label"].names)

    Small ones are faster in memory, see `in_memory`.

    Args:
        dataset: Has `len` and `dataset[i]`. It is pickled where worker processes are not forked.
        image: Place of the image in an item that is a tuple, or its name in one that is a dictionary; None: the item
            itself is the image.
        labels: Class of each image, integers, shape (n,); None for none. "targets" is the attribute of that name, which
            most of torchvision's have, or none where there is no such attribute, as in a `Subset`. Labels in its items
            are not read, as that would decode all images.
        classes: Names of the classes; None: the attribute `classes` where labels are "targets", or else numbers.

    Raises:
        InputError: The data set has no order or no images, or labels are not one for each image.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        image: int | str | None = 0,
        labels: Tensor | Sequence[int] | Literal["targets"] | None = "targets",
        classes: Sequence[str] | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise InputError(f"`dataset` must have an order (map-style), got {type(dataset).__name__}.")
        if len(dataset) == 0:
            raise InputError(f"`dataset` must hold images, {type(dataset).__name__} holds none.")
        self.dataset, self.image = dataset, image
        self.images, self.labels, self.classes = None, None, None
        if isinstance(labels, str):
            if labels != "targets":
                raise InputError(f"`labels` must be integers, 'targets' or None, got {labels!r}.")
            labels = getattr(dataset, "targets", None)
            classes = getattr(dataset, "classes", None) if classes is None else classes
        if labels is not None:
            self.labels, self.classes = check_labels(labels, classes, n=len(dataset))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w)."""
        try:
            item = self.dataset[index]
            image = item if self.image is None else self._part(item, self.image, index)
            if isinstance(image, Image.Image):
                return _from_pil(image, name=self.name(index))
        except _UNREADABLE as error:
            raise InputError(f"{self.name(index)} cannot be read: {error}.") from error
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"{self.name(index)} must be a PIL image or a tensor (c, h, w), got {got}.")
        return image

    def name(self, index: int) -> str:
        """Number of the image and kind of the data set."""
        return f"image {index} of {type(self.dataset).__name__}"

    def _part(self, item: Any, place: int | str, index: int) -> Any:
        if isinstance(place, str):
            found = isinstance(item, Mapping) and place in item
        else:
            found = isinstance(item, Sequence) and place < len(item)
        if not found:
            raise InputError(
                f"`image` must be a place in a tuple, a name in a dictionary or None, got {place!r} for "
                f"{self.name(index)}, a {type(item).__name__}."
            )
        return item[place]


def _from_pil(image: Image.Image, *, name: str) -> Tensor:
    try:
        return as_rgb(image)
    except ValueError as error:
        raise InputError(f"{name} cannot be read: {error}.") from error
