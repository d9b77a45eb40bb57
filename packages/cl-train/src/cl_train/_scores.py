"""Accuracies, and the checks that all judges of bare features share."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """How well a classifier does on the test set.

    Attributes:
        top1: Share of test images whose class gets the highest score, in [0, 1].
        top5: Share whose class is among the five highest; 1 with five classes or fewer.
    """

    top1: float
    top5: float


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Accuracies of logits (n, classes) against labels (n,)."""
    hits = top_hits(logits, labels)
    return Scores(top1=float(hits[0]) / len(labels), top5=float(hits[1]) / len(labels))


def top_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Numbers of rows whose label is first, and among the first five: (2,), on the device."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([ranked[:, 0].sum(), ranked.any(1).sum()])


def check_features(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> int:
    """Number of classes, after checking that features and labels belong together.

    Raises:
        ValueError: Shapes do not fit, features are not finite, or a test label does not occur in training.
    """
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            raise ValueError(
                f"`{name}_x` and `{name}_y` must have shapes (n, d) and (n,) with n >= 1, got {tuple(x.shape)} and "
                f"{tuple(y.shape)}."
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"`{name}_x` must be finite, it holds NaN or infinity.")
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"`train_x` and `test_x` must be equally wide, got {train_x.shape[1]} and {test_x.shape[1]}.")
    if train_y.is_floating_point() or int(train_y.min()) < 0:
        raise ValueError("`train_y` must hold classes, integers from 0.")
    unknown = set(test_y.tolist()) - set(train_y.tolist())
    if unknown:
        raise ValueError(f"`test_y` holds classes that `train_y` has not: {sorted(unknown)}.")
    return int(train_y.max()) + 1
