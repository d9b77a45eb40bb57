"""What features are worth when few images have labels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cl_train._logistic import fit_logistic
from cl_train._scores import Scores, check_features, scores


@dataclass(frozen=True)
class FewLabelScores:
    """Means over the draws of the labelled images.

    Attributes:
        top1: Mean share of test images that are classified correctly, in [0, 1].
        top5: Mean share whose class is among the five highest scores.
        draws: The scores of each draw.
    """

    top1: float
    top5: float
    draws: list[Scores]


def few_label_eval(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    labels_per_class: int | None,
    draws: int = 10,
    C: float = 100.0,  # noqa: N803
    normalize: bool = True,
) -> FewLabelScores:
    """Accuracy of a logistic regression that sees the labels of a few training images of each class.

    Draw k takes `labels_per_class` images of each class by `numpy.random.default_rng(k)`, class by class without
    replacement, so other features can be judged on the same images.

    Args:
        train_x: Features, (n, d).
        train_y: Classes from 0, integers, (n,).
        test_x: Features, (m, d).
        test_y: Classes, (m,).
        labels_per_class: Labelled images of each class, >= 1; None: all images, one draw.
        draws: Draws to average over, >= 1.
        C: Inverse strength of the L2 regularisation, as scikit-learn's, > 0.
        normalize: Whether to scale features to unit length.

    Returns:
        Mean accuracies, and those of each draw.

    Raises:
        ValueError: Features and labels do not fit, an argument is out of its range, or a class has too few images.
    """
    classes = check_features(train_x, train_y, test_x, test_y)
    for name, value in {"labels_per_class": labels_per_class, "draws": draws, "C": C}.items():
        if value is not None and value <= 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
    if normalize:
        train_x, test_x = functional.normalize(train_x, dim=1), functional.normalize(test_x, dim=1)
    train_y, found = train_y.long(), []
    for draw in range(1 if labels_per_class is None else draws):
        chosen = _choose(train_y, labels_per_class, draw=draw)
        weight, bias = fit_logistic(train_x[chosen], train_y[chosen], classes=classes, C=C)
        found.append(scores(test_x.double() @ weight.T + bias, test_y))
    return FewLabelScores(
        top1=sum(s.top1 for s in found) / len(found), top5=sum(s.top5 for s in found) / len(found), draws=found
    )


def _choose(labels: Tensor, per_class: int | None, *, draw: int) -> Tensor:
    if per_class is None:
        return torch.arange(len(labels))
    random = np.random.default_rng(draw)
    chosen = []
    for label in labels.unique().tolist():
        members = np.flatnonzero(labels.cpu().numpy() == label)
        if len(members) < per_class:
            raise ValueError(
                f"`labels_per_class` must be at most the images of each class, {len(members)} in class {label}, got "
                f"{per_class}."
            )
        chosen.append(random.choice(members, per_class, replace=False))
    return torch.from_numpy(np.concatenate(chosen))
