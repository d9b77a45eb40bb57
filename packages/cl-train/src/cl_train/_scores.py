"""Accuracies, and the checks that all judges of bare features share."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_train._errors import InputError


@dataclass(frozen=True)
class Scores:
    """How well a classifier does on the test set.

    Attributes:
        top1: Share of test images whose class gets the highest score, in [0, 1].
        top5: Share whose class is among the five highest; 1 with five classes or fewer.
        mean_per_class: Mean over classes of the share of a class's test images that get it right, in [0, 1]: what the
            papers report where classes are of unequal size (Aircraft, Pets, Caltech-101, Flowers). Classes without a
            test image are left out.
        images: Test images.
    """

    top1: float
    top5: float
    mean_per_class: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        r"""Between which values the top-1 of other test images would be found, 95 % of times, all else as it is.

        Wilson's interval, with $p$ the top-1 of $n$ images and $z = 1.96$,

        $$\frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4n^2}}{1 + z^2 / n}.$$

        It says nothing of other seeds: for those, train again.
        """
        p, n, z = self.top1, self.images, 1.959964
        middle, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        return (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Accuracies of logits (n, classes) against labels (n,)."""
    return scores_of(count_hits(logits, labels))


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """By class: rows whose label is first, rows whose label is among the first five, rows; (3, classes), int64.

    On the device, and without waiting for it: parts of a test set can be added up.
    """
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    found = torch.stack([ranked[:, 0], ranked.any(1), torch.ones_like(ranked[:, 0])]).long()
    return found.new_zeros(3, logits.shape[1]).index_add_(1, labels.long(), found)


def scores_of(hits: Tensor) -> Scores:
    """Accuracies of what `count_hits` has counted."""
    top1, top5, rows = hits.sum(1).tolist()
    there = hits[2] > 0
    shares = hits[0, there].double() / hits[2, there]
    return Scores(top1=top1 / rows, top5=top5 / rows, mean_per_class=float(shares.mean()), images=rows)


def check_features(
    train_x: Tensor,
    train_y: Tensor | None,
    test_x: Tensor,
    test_y: Tensor | None,
    *,
    name: str = "test",
    train: str = "train",
) -> int:
    """Number of classes, after checking that features and labels belong together.

    Raises:
        InputError: There are no labels, devices differ, shapes do not fit, features are not finite, training has one
            class only, or a test label does not occur in training. `name` is what errors call the test.
    """
    devices = [str(each.device) for each in (train_x, train_y, test_x, test_y) if each is not None]
    if len(set(devices)) > 1:
        raise InputError(f"features and labels must all be on one device, got {', '.join(devices)}.")
    for part, x, y in ((train, train_x, train_y), (name, test_x, test_y)):
        _check_part(part, x, y)
    assert train_y is not None and test_y is not None  # noqa: PT018
    if train_x.shape[1] != test_x.shape[1]:
        raise InputError(
            f"`{train}_x` and `{name}_x` must be equally wide, got {train_x.shape[1]} and {test_x.shape[1]}."
        )
    for part, y in ((train, train_y), (name, test_y)):
        if y.is_floating_point() or y.dtype == torch.bool or int(y.min()) < 0:
            raise InputError(f"`{part}_y` must hold classes, integers from 0.")
    known = set(train_y.tolist())
    if len(known) == 1:
        raise InputError(f"`{train}_y` must hold at least two classes, it holds only {known.pop()}.")
    unknown = set(test_y.tolist()) - known
    if unknown:
        raise InputError(f"`{name}_y` holds classes that `{train}_y` has not: {sorted(unknown)}.")
    return max(known) + 1


def _check_part(name: str, x: Tensor, y: Tensor | None) -> None:
    if y is None:
        raise InputError(f"`{name}_y` must hold the class of each image, got None: the data set has no labels.")
    if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
        raise InputError(
            f"`{name}_x` and `{name}_y` must have shapes (n, d) and (n,) with n >= 1, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"`{name}_x` must be finite, it holds NaN or infinity.")
