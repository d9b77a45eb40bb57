"""What features are worth when few images have labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._errors import InputError
from cl_train._few_labels import check_rows, few_labels
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
    labels: int | float | Tensor | None,
    draws: int = 10,
    C: float = 100.0,  # noqa: N803
    normalize: bool = True,
) -> FewLabelScores:
    """Accuracy of a logistic regression that sees the labels of a few training images of each class.

    Draw k takes the images of each class by `numpy.random.default_rng(k)`, class by class without replacement, so other
    features can be judged on the same images.

    Args:
        train_x: Features, (n, d).
        train_y: Classes from 0, integers, (n,).
        test_x: Features, (m, d).
        test_y: Classes, (m,).
        labels: Which training images have labels. An int: so many of each class, >= 1. A float in (0, 1): that share
            of all, spread over the classes evenly; which classes get one more than others is drawn. A tensor: the rows
            with these numbers, one draw; a class without any is never predicted. None: all, one draw.
        draws: Draws to average over, >= 1, where they are drawn.
        C: Inverse strength of the L2 regularisation, as scikit-learn's, > 0.
        normalize: Whether to scale features to unit length.

    Returns:
        Mean accuracies, and those of each draw.

    Raises:
        InputError: Features and labels do not fit, an argument is out of its range, or a class has too few images.
    """
    classes = check_features(train_x, train_y, test_x, test_y)
    for name, value in {"draws": draws, "C": C}.items():
        if value <= 0:
            raise InputError(f"`{name}` must be positive, got {value}.")
    if normalize:
        train_x, test_x = functional.normalize(train_x, dim=1), functional.normalize(test_x, dim=1)
    train_y, found = train_y.long(), []
    for chosen in _drawn(train_y, labels, draws):
        weight, bias = fit_logistic(train_x[chosen], train_y[chosen], classes=classes, penalty=1 / C)
        found.append(scores(test_x.double() @ weight.T + bias, test_y))
    return FewLabelScores(
        top1=sum(s.top1 for s in found) / len(found), top5=sum(s.top5 for s in found) / len(found), draws=found
    )


def _drawn(train_y: Tensor, labels: int | float | Tensor | None, draws: int) -> list[Tensor]:
    """Numbers of the labelled rows of each draw."""
    if labels is None:
        return [torch.arange(len(train_y))]
    if not isinstance(labels, Tensor):
        return [few_labels(train_y, labels, seed=draw) for draw in range(draws)]
    listed = check_rows(labels, len(train_y))
    if len(train_y[listed].unique()) == 1:
        raise InputError(f"`labels` must be rows of at least two classes, all are of {int(train_y[listed[0]])}.")
    return [listed]
