"""The papers' transfer protocol: logistic regression with the penalty that suits held-out images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._errors import InputError
from cl_train._few_labels import held_out as split
from cl_train._logistic import fit_logistic, logistic_path
from cl_train._scores import Scores, check_features, scores

_PENALTIES = tuple(10 ** (5 - i / 4) for i in range(45))  # 1e5 ... 1e-6


@dataclass(frozen=True)
class LogisticScores(Scores):
    """Scores on the test features, and how the penalty was found.

    Attributes:
        penalty: The lambda that was chosen.
        tried: Top-1 on the validation features by lambda, in [0, 1]; empty if there was nothing to choose.
    """

    penalty: float
    tried: dict[float, float]


def logistic_eval(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    val_x: Tensor | None = None,
    val_y: Tensor | None = None,
    penalties: Sequence[float] = _PENALTIES,
    held_out: float = 0.1,
    normalize: bool = False,
    seed: int = 0,
) -> LogisticScores:
    r"""Accuracy of a logistic regression whose L2 penalty is chosen on validation features: the transfer protocol.

    For each lambda, W and b minimise

    $$\sum_i -\log \operatorname{softmax}(W x_i + b)_{y_i} + \tfrac \lambda 2 \lVert W \rVert^2$$

    on the training features; the lambda with the highest top-1 on the validation features (of equals, the strongest)
    is solved for again on both together, and judged on the test features (arXiv:2002.05709, App. B.8.1, with L-BFGS
    and 45 lambda from 1e-6 to 1e5, as here).

    The paper does not say whether its cross entropy is a sum or a mean over images, nor whether the bias is
    penalised. Here it is the sum and the bias is not: lambda is 1 / C of scikit-learn's `LogisticRegression`. With the
    mean, the same lambda would be n times as strong; the range is wide enough for both. The paper chooses by the
    accuracy of each data set, some of which are means per class; here it is top-1.

    Solutions that are only compared are found in float32 and roughly, the last one in float64 to convergence.

    Args:
        train_x: Features, (n, d).
        train_y: Classes from 0, integers, (n,).
        test_x: Features, (m, d).
        test_y: Classes, (m,).
        val_x: Features to choose by, (v, d), with `val_y`; None: a part of the training features.
        val_y: Classes, (v,).
        penalties: lambda > 0, in any order. With one, nothing is chosen.
        held_out: Share of each class's training rows to choose by, in (0, 1), if there is no `val_x`.
        normalize: Whether to scale features to unit length. The paper does not say that it did; `few_label_eval` does.
        seed: Seed of the held-out rows.

    Returns:
        Accuracies on the test features, and the penalty.

    Raises:
        InputError: Features and labels do not fit, or an argument is out of its range.
    """
    classes = check_features(train_x, train_y, test_x, test_y)
    if not penalties or not all(0 < penalty < math.inf for penalty in penalties):
        raise InputError(f"`penalties` must be one or more positive numbers, got {penalties}.")
    if (val_x is None) != (val_y is None):
        raise InputError("`val_x` and `val_y` must be given together.")
    x, y, held = train_x, train_y.long(), None
    if val_x is not None and val_y is not None:
        check_features(train_x, train_y, val_x, val_y, name="val")
        x, y = torch.cat([train_x, val_x]), torch.cat([train_y, val_y]).long()
        held = torch.arange(len(train_x), len(x))
    if normalize:
        x, test_x = functional.normalize(x, dim=1), functional.normalize(test_x, dim=1)
    penalty, start = penalties[0], None
    tried: dict[float, float] = {}
    if len(penalties) > 1:
        held = split(y, held_out, seed=seed)[1] if held is None else held
        penalty, start, tried = _choose(x, y, held, classes, penalties)
    weight, bias = fit_logistic(x, y, classes=classes, penalty=penalty, start=start)
    found = scores(test_x.double() @ weight.T + bias, test_y)
    return LogisticScores(**vars(found), penalty=penalty, tried=tried)


def _choose(
    x: Tensor, y: Tensor, held: Tensor, classes: int, penalties: Sequence[float]
) -> tuple[float, tuple[Tensor, Tensor] | None, dict[float, float]]:
    """The penalty whose solution on the other rows is best on the held ones, that solution, and top-1 by penalty."""
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[held] = False
    held_x, held_y, best = x[held].double(), y[held], -1.0
    tried: dict[float, float] = {}
    penalty, start = math.nan, None
    falling = sorted(penalties, reverse=True)
    path = logistic_path(x[kept], y[kept], classes=classes, penalties=falling)
    for each, (weight, bias) in zip(falling, path, strict=True):
        tried[each] = float(((held_x @ weight.T + bias).argmax(1) == held_y).double().mean())
        if tried[each] > best:  # not of an equal one: it is weaker
            best, penalty, start = tried[each], each, (weight, bias)
    return penalty, start, tried
