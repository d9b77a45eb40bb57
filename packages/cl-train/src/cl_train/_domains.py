"""Images of several domains with classes in common: renderings and photographs, for instance."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError


class DomainDataset(ImageDataset):
    """Data sets of several domains as one: every image has a domain, and a class where it is known.

    Classes are the same where their names are, so a domain may lack some of them, or all labels: class folders of
    renderings beside a plain folder of photographs are

        DomainDataset({"synthetic": FolderDataset(a), "real": FolderDataset(b, labelled=False)})

    and images in memory are `ArrayDataset`s. Images are numbered through, one domain after the other.

    Args:
        datasets: By the domain's name, at least two. Labels of -1, as `Relabelled` has them, are none.

    Attributes:
        labels: Class of each image, int64, (n,), -1 where it is not known.
        domains: Domain of each image, int64, (n,), numbered in the order of `datasets`.
        domain_names: Their names.
        starts: Number of the first image of each domain.

    Raises:
        InputError: There are fewer than two domains, none has labels, those that have labels share no class, or a
            domain has two classes of one name.
    """

    labels: Tensor
    classes: list[str]

    def __init__(self, datasets: Mapping[str, ImageDataset]) -> None:
        if len(datasets) < 2:
            raise InputError(f"`datasets` must be of at least 2 domains, got {len(datasets)}.")
        self.datasets, self.domain_names = list(datasets.values()), list(datasets)
        named = {name: _present(name, dataset) for name, dataset in datasets.items()}
        labelled = {name: classes for name, classes in named.items() if classes}
        if not labelled:
            raise InputError("`datasets` must have labels in at least one domain, none has any.")
        if len(labelled) > 1 and len(set().union(*labelled.values())) == sum(map(len, labelled.values())):
            some = "; ".join(f"{name}: {sorted(classes)[:5]}" for name, classes in labelled.items())
            raise InputError(f"`datasets` must have names of classes in common, they have none: {some}.")
        self.classes = _union([dataset.classes for dataset in self.datasets])
        sizes = torch.tensor([len(dataset) for dataset in self.datasets])
        self.starts = [0, *sizes.cumsum(0)[:-1].tolist()]
        self.labels = torch.cat([_labels(dataset, self.classes) for dataset in self.datasets])
        self.domains = torch.arange(len(sizes)).repeat_interleave(sizes)
        self.images = _together([dataset.images for dataset in self.datasets])

    def __len__(self) -> int:
        """Number of images of all domains."""
        return len(self.domains)

    def read(self, index: int) -> Tensor:
        """Image `index`, (c, h, w)."""
        domain = int(self.domains[index])
        return self.datasets[domain].read(index - self.starts[domain])

    def name(self, index: int) -> str:
        """Its domain, and what the domain's data set calls it."""
        domain = int(self.domains[index])
        return f"{self.domain_names[domain]}: {self.datasets[domain].name(index - self.starts[domain])}"

    def targets(self, ids: Tensor) -> Tensor:
        """Class, or -1, and domain of images: (b, 2)."""
        return torch.stack([self.labels[ids], self.domains[ids]], dim=1)


def _present(domain: str, dataset: ImageDataset) -> set[str]:
    """Names of the classes of which a domain has labelled images."""
    if dataset.labels is None or dataset.classes is None:
        return set()
    if len(set(dataset.classes)) < len(dataset.classes):
        twice = [name for name in dataset.classes if dataset.classes.count(name) > 1]
        raise InputError(f"`datasets` must have classes of different names, {domain} has {twice[0]!r} more than once.")
    return {dataset.classes[label] for label in dataset.labels.unique().tolist() if label >= 0}


def _union(names: list[list[str] | None]) -> list[str]:
    """All classes, each once, in the order in which they come first."""
    return list(dict.fromkeys(name for some in names for name in some or []))


def _labels(dataset: ImageDataset, classes: list[str]) -> Tensor:
    """Labels by the numbers of `classes`."""
    if dataset.labels is None or dataset.classes is None:
        return torch.full((len(dataset),), -1)
    numbers = torch.tensor([*(classes.index(name) for name in dataset.classes), -1])
    return numbers[dataset.labels]  # -1 is the last


def _together(images: list[Tensor | None]) -> Tensor | None:
    """Images of all domains as one tensor, if all are in memory and alike."""
    known = [some for some in images if some is not None]
    if len(known) < len(images) or len({(some.shape[1:], some.dtype, some.device) for some in known}) > 1:
        return None
    return torch.cat(known)
