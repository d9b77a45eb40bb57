"""Images with other labels than their data set gives them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._domains import DomainDataset
from cl_train._errors import InputError
from cl_train._labelled import Labels, labelled
from cl_train._labels import check_labels


class Relabelled(ImageDataset):
    """The same images with other labels, or none: what is known of some, or what was found out by other means.

    Args:
        dataset: Images.
        labels: Class of each image, integers in -1 ... number of classes - 1, shape (n,); -1: without label.
        classes: Names of the classes; by default those of the data set or, if it has none, their numbers.

    Raises:
        InputError: Labels are no integers, not one for each image, or out of range.
    """

    def __init__(
        self, dataset: ImageDataset, labels: Tensor | Sequence[int], *, classes: Sequence[str] | None = None
    ) -> None:
        if isinstance(dataset, DomainDataset):
            raise InputError("`dataset` must be no DomainDataset: give other labels to the data sets of its domains.")
        labels = torch.as_tensor(labels)
        self.dataset, self.images = dataset, dataset.images
        if classes is None:
            classes = dataset.classes
        if bool((labels < -1).any()):
            raise InputError(f"`labels` must be at least -1, got {int(labels.min())}.")
        checked, self.classes = check_labels(labels.clamp_min(0), classes, n=len(dataset))
        self.labels = torch.where(labels < 0, -1, checked)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w)."""
        return self.dataset.read(index)

    def name(self, index: int) -> str:
        """What the data set calls it."""
        return self.dataset.name(index)


def keep_labels(dataset: ImageDataset, labels: Labels, *, seed: int = 0) -> Relabelled:
    """A labelled data set of which only some images keep their labels; the others have -1.

    Args:
        dataset: Labelled images.
        labels: Which keep theirs, as for `fine_tune`: so many of each class, a share of all, a file of names, numbers
            of images, or None for all; and 0 for none.
        seed: Which ones, where that is left to chance.

    Raises:
        InputError: The data set has no labels, or `labels` is none of these.
    """
    if dataset.labels is None:
        raise InputError("`dataset` must have labels to keep.")
    kept = torch.full_like(dataset.labels, -1)
    if not isinstance(labels, int) or isinstance(labels, bool) or labels != 0:
        ids = labelled(dataset, labels, seed=seed)
        kept[ids] = dataset.labels[ids]
    return Relabelled(dataset, kept)
