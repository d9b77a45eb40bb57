"""Which rows are positives of which, and sums over them, without a matrix.

The loss needs of a row's positives only the sum of their vectors: the sum of z_i . z_p is z_i . sum(z_p). Sums over
classes are taken once for all rows, so labels cost nothing that grows with the square of the batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cl_losses._precision import widest
from cl_losses._tiles import cuts

# Columns are worked on a few at a time, so that what is gathered from the class sums stays small.
NUMBERS_AT_A_TIME = 2**18


class Groups(NamedTuple):
    """For every row of all processes, int64, (M,).

    `sample`: rows with the same number are views of one image. `label`: rows with the same number are of one class,
    an unlabelled image is a class of its own. `cell`: rows with the same number are of one class and one domain; None
    where a class is one in all domains. `side`: a number of the domain, from 1, negative without label; None where
    images without label are compared with all domains.
    """

    sample: Tensor
    label: Tensor
    cell: Tensor | None = None
    side: Tensor | None = None

    def stack(self) -> Tensor:
        """As one tensor, (2, M), with a row more for cells and for sides."""
        return torch.stack([numbers for numbers in self if numbers is not None])

    @classmethod
    def unstack(cls, stacked: Tensor, *, cells: bool) -> "Groups":
        """What `stack` made; `cells` tells whether there were any."""
        rest = list(stacked[2:])
        cell = rest.pop(0) if cells else None
        return cls(stacked[0], stacked[1], cell, rest[0] if rest else None)


def number_groups(keys: Tensor, *, alone: Tensor) -> Tensor:
    """Numbers 0, 1, ... for the distinct `keys`, (n,), and a number of its own for every element that is `alone`.

    By sorting, not by `torch.unique`, whose result has a length that the host would have to wait for.
    """
    order = keys.argsort(stable=True)
    ordered, by_itself = keys[order], alone[order]
    new = torch.ones_like(by_itself)
    new[1:] = (ordered[1:] != ordered[:-1]) | by_itself[1:]
    numbers = torch.empty_like(order)
    numbers[order] = new.cumsum(0) - 1
    return numbers


def over_views(per_image: Tensor, *, shares: list[int], views: int) -> Tensor:
    """What is known of each image, for each of its rows: a process's are its images' first views, then second ones."""
    return torch.cat([part.repeat(views) for part in per_image.split(shares)])


def group_rows(
    labels: Tensor, domains: Tensor | None, *, shares: list[int], views: int, cells: bool = True, sides: bool = False
) -> Groups:
    """Groups of all rows, from labels and domains of all images; of the domains' groups those that are asked for."""
    sample = torch.arange(labels.shape[0], device=labels.device)
    unlabelled = labels < 0
    label = number_groups(labels, alone=unlabelled)
    cell = side = None
    if domains is not None:
        domain = number_groups(domains, alone=torch.zeros_like(unlabelled))
        if cells:
            cell = number_groups(label * labels.shape[0] + domain, alone=unlabelled)
        if sides:
            side = torch.where(unlabelled, -1 - domain, 1 + domain)

    def rows(numbers: Tensor) -> Tensor:
        return over_views(numbers, shares=shares, views=views)

    return Groups(rows(sample), rows(label), None if cell is None else rows(cell), None if side is None else rows(side))


def count_rows(numbers: Tensor) -> Tensor:
    """How many rows have the same number as each row, (M,)."""
    return torch.zeros_like(numbers).index_add_(0, numbers, torch.ones_like(numbers))[numbers]


def count_positives_of_rows(groups: Groups) -> Tensor:
    """The number of positives of each row, int64, (M,).

    That is its class without itself, or, with cells, its class in other domains and its own other views.
    """
    of_class = count_rows(groups.label)
    if groups.cell is None:
        return of_class - 1
    return of_class - count_rows(groups.cell) + count_rows(groups.sample) - 1


def positive_products(z: Tensor, groups: Groups, *, at: slice) -> Tensor:
    """For the rows `at`, the sum of their products with their positives, (rows of `at`,)."""
    products = z.new_zeros(at.stop - at.start)
    for columns in _some_columns(z):
        part = _wide(z[:, columns])
        products += (part[at] * _sums_of_positives(part, groups, at=at)).sum(1)
    return products


def subtract_positives_(dz: Tensor, z: Tensor, groups: Groups, *, weights: Tensor, at: slice) -> None:
    """From the rows `at`, subtract the sum over their positives p of (w_i + w_p) z_p; `weights`, w, is (M,)."""
    weights = _wide(weights).unsqueeze(1)
    for columns in _some_columns(z):
        part = _wide(z[:, columns])
        total = _sums_of_positives(part, groups, at=at).mul_(weights[at])
        dz[:, columns].sub_(total.add_(_sums_of_positives(part.mul_(weights), groups, at=at)))


def _sums_of_positives(rows: Tensor, groups: Groups, *, at: slice) -> Tensor:
    """For the rows `at`, the sum of the rows of their positives."""
    total = _sums_of_group(rows, groups.label, at=at) - rows[at]
    if groups.cell is not None:
        total -= _sums_of_group(rows, groups.cell, at=at)
        total += _sums_of_group(rows, groups.sample, at=at)
    return total


def _sums_of_group(rows: Tensor, numbers: Tensor, *, at: slice) -> Tensor:
    """For the rows `at`, the sum of all rows with the same number."""
    return torch.zeros_like(rows).index_add_(0, numbers, rows).index_select(0, numbers[at])


def _some_columns(z: Tensor) -> Iterator[slice]:
    return cuts(0, z.shape[1], max(4, NUMBERS_AT_A_TIME // max(z.shape[0], 1)))


def _wide(rows: Tensor) -> Tensor:
    """A copy in float64: in float32 the sum of a class of a million equal rows would lose three digits."""
    return rows.to(widest(rows), copy=True)
