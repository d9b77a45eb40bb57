"""Which images of a data set have their labels used, when few have."""

from pathlib import Path

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._few_labels import check_rows, few_labels
from cl_train._labels import check_all_labelled
from cl_train._subset import find_by_name

Labels = int | float | str | Path | Tensor | None


def labelled(dataset: ImageDataset, labels: Labels, *, seed: int) -> Tensor:
    """Numbers of the images whose labels are used.

    Args:
        dataset: Labelled images.
        labels: How many of each class; or a share of all in (0, 1), evenly spread over the classes; or a text file
            with an image's name on each line, as the published lists of 1 % and 10 % of ImageNet; or numbers of images;
            or None for all.
        seed: Which ones, where that is left to chance.

    Returns:
        int64, (m,).

    Raises:
        InputError: There are not as many, or `labels` is none of these.
    """
    if labels is None:
        return torch.arange(len(dataset))
    if isinstance(labels, Tensor):
        return check_rows(labels, len(dataset))
    if isinstance(labels, str | Path):
        return check_rows(find_by_name(dataset, _lines(Path(labels))), len(dataset))
    if dataset.labels is None:
        raise InputError("`train` must have labels.")
    check_all_labelled(dataset.labels, name="train")
    return few_labels(dataset.labels, labels, seed=seed)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`labels` must be a text file with an image's name on each line: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"`labels` must be a text file with an image's name on each line, {path} is empty.")
    return names
