"""Classes for the images of a domain without labels, from those of a domain with labels."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._errors import InputError


class Matched(NamedTuple):
    """Classes that were found, int64, (m,), -1 where none was given; and each row's margin, 0 to 2, (m,)."""

    labels: Tensor
    margin: Tensor


@torch.no_grad()
def match_classes(
    source_x: Tensor,
    source_y: Tensor,
    target_x: Tensor,
    *,
    known: Tensor | None = None,
    keep: float = 1.0,
    iterations: int = 50,
) -> Matched:
    """Name the clusters of a domain by the classes of another: spherical k-means that starts from the classes' means.

    Rows of each domain are scaled to unit length, moved so that the domain's mean is at the origin, and scaled again:
    that takes away what all images of a domain have in common, where classes are about as frequent in both. Each target
    row then goes to the nearest of the source's class means; these are replaced by the means of the target rows that
    came to them, and so on until none changes its place. Target clusters need not lie where the source's do, but nearer
    to their own class's than to others'.

    That k-means begins at the source's means is from Wang et al., Cross-domain contrastive learning for unsupervised
    domain adaptation, 2021, arXiv:2106.05528; that each domain is centred is not.

    Args:
        source_x: Features or projections of images with labels, (n, d).
        source_y: Their classes from 0, integers, (n,); each class has at least one.
        target_x: Those of the other domain, (m, d), by the same network.
        known: Labels of the target images that have one, -1 for the others, (m,): they keep them.
        keep: Share of the rows without a known label that are given a class, those with the largest margins, in (0, 1].
        iterations: Rounds at most, >= 1.

    Returns:
        Classes, and margins: cosine to the nearest centre minus that to the second nearest.

    Raises:
        InputError: Shapes do not fit, features are not finite, labels are no integers, a number is out of its range,
            or a class has no source image.
    """
    _check(source_x, source_y, target_x, known, keep=keep, iterations=iterations)
    source_y = source_y.long()
    classes = int(source_y.max()) + 1
    source, target = _centred(source_x), _centred(target_x)
    fixed = torch.full((len(target),), -1, device=target.device) if known is None else known.long()
    centres = _means(source, source_y, torch.zeros(classes, source.shape[1], dtype=source.dtype, device=source.device))
    labels = torch.where(fixed < 0, (target @ centres.T).argmax(1), fixed)
    for _ in range(iterations):
        centres = _means(target, labels, centres)
        before, labels = labels, torch.where(fixed < 0, (target @ centres.T).argmax(1), fixed)
        if torch.equal(before, labels):
            break
    first, second = (target @ centres.T).topk(2, dim=1).values.T
    margin = first - second
    named = margin[fixed < 0].sort(descending=True).values
    least = named[max(1, round(keep * len(named))) - 1] if len(named) else 0.0
    return Matched(torch.where((margin >= least) | (fixed >= 0), labels, -1), margin)


def _check(
    source_x: Tensor, source_y: Tensor, target_x: Tensor, known: Tensor | None, *, keep: float, iterations: int
) -> None:
    if source_x.ndim != 2 or target_x.ndim != 2 or source_x.shape[1] != target_x.shape[1] or len(target_x) < 2:
        shapes = f"{tuple(source_x.shape)} and {tuple(target_x.shape)}"
        raise InputError(f"`source_x` and `target_x` must have shapes (n, d) and (m, d) with m >= 2, got {shapes}.")
    if len({x.device for x in (source_x, source_y, target_x)}) > 1:
        raise InputError("`source_x`, `source_y` and `target_x` must be on one device.")
    for name, x in (("source_x", source_x), ("target_x", target_x)):
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"`{name}` must be finite, it holds NaN or infinity.")
    if not _whole(source_y) or source_y.shape != (len(source_x),) or len(source_y) == 0 or int(source_y.min()) < 0:
        raise InputError(f"`source_y` must hold a class from 0 for each of {len(source_x)} rows.")
    if len(source_y.unique()) != int(source_y.max()) + 1 or int(source_y.max()) < 1:
        raise InputError("`source_y` must have at least two classes, numbered from 0, each with a row.")
    if known is not None:
        fits = _whole(known) and known.shape == (len(target_x),)
        if not fits or int(known.min()) < -1 or int(known.max()) > int(source_y.max()):
            raise InputError(f"`known` must hold -1 or a class of `source_y` for each of {len(target_x)} rows.")
    if not 0 < keep <= 1:
        raise InputError(f"`keep` must be in (0, 1], got {keep}.")
    if iterations < 1:
        raise InputError(f"`iterations` must be at least 1, got {iterations}.")


def _whole(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _centred(x: Tensor) -> Tensor:
    unit = functional.normalize(x.double(), dim=1)
    return functional.normalize(unit - unit.mean(0), dim=1)


def _means(x: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """Unit means of the rows of each class; those of before for classes without a row."""
    sums = torch.zeros_like(before).index_add_(0, labels, x)
    empty = torch.bincount(labels, minlength=len(before)) == 0
    return torch.where(empty[:, None], before, functional.normalize(sums, dim=1))
