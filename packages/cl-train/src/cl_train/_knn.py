"""k nearest neighbours: what features are worth without any training."""

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._errors import InputError
from cl_train._scores import Scores, check_features, count_hits, scores_of

_ROWS = 1024  # test rows at a time, so memory is linear in the training set


def knn_eval(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, k: int = 200, temperature: float = 0.1
) -> Scores:
    r"""Accuracy of weighted k nearest neighbours by cosine.

    The score of class c for a test row is the sum of $\exp(s_i / \tau)$ over those of its k nearest training rows that
    are of class c, with cosine $s_i$ (Wu et al., arXiv:1805.01978, section 3.4). Neither SimCLR's nor BYOL's authors
    report it.

    Args:
        train_x: Features, (n, d); normalised here.
        train_y: Classes from 0, integers, (n,).
        test_x: Features, (m, d); normalised here.
        test_y: Classes, (m,).
        k: Neighbours, >= 1; n if there are fewer.
        temperature: tau > 0; Wu et al. use 0.07, lightly 0.1.

    Returns:
        Accuracies. Classes that no neighbour has are ranked last.

    Raises:
        InputError: Features and labels do not fit, or an argument is out of its range.
    """
    classes = check_features(train_x, train_y, test_x, test_y)
    if k < 1:
        raise InputError(f"`k` must be at least 1, got {k}.")
    if not temperature > 0:
        raise InputError(f"`temperature` must be positive, got {temperature}.")
    train_x, test_x = functional.normalize(train_x.float(), dim=1), functional.normalize(test_x.float(), dim=1)
    hits = torch.zeros(3, classes, dtype=torch.int64, device=test_x.device)
    for rows, labels in zip(test_x.split(_ROWS), test_y.split(_ROWS), strict=True):
        similarity, neighbours = (rows @ train_x.T).topk(min(k, len(train_x)), dim=1)
        # relative to the nearest: the same ranking, and no overflow at a small temperature
        weights = torch.exp((similarity - similarity[:, :1]) / temperature)
        votes = torch.zeros(len(rows), classes, device=rows.device)
        hits += count_hits(votes.scatter_add_(1, train_y[neighbours].long(), weights), labels)
    return scores_of(hits)
