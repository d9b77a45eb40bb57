"""Calls that all processes must refuse, though only the last one of them is wrong in most."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cl_losses import contrastive_metrics, count_positives, cross_domain_loss, info_nce_loss, nt_xent_loss, sup_con_loss
from torch import Tensor


class Refusal(NamedTuple):
    """A call, given whether this is the last process, and what it raises there and on the others."""

    call: Callable[[bool], Any]
    last: str
    others: str
    error: type[Exception] = ValueError  # on the last


def rows(images: int = 3, width: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def two_views(images: int = 3, width: int = 4, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return rows(images, width, dtype=dtype), rows(images, width, seed=1, dtype=dtype)


def with_nan(z: Tensor) -> Tensor:
    z = z.clone()
    z[1, 2] = torch.nan
    return z


def _integers(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def _both(call: Callable[[bool], Any], message: str) -> Refusal:
    return Refusal(call, message, message)


def _one(call: Callable[[bool], Any], message: str, error: type[Exception] = ValueError) -> Refusal:
    return Refusal(call, message, r"The arguments of process \d were refused; its own error says why", error)


HYPERPARAMETERS = "All processes must call the same loss with the same hyperparameters"

REFUSALS: dict[str, Refusal] = {
    # all processes see that they differ
    "width": _both(
        lambda last: nt_xent_loss(*two_views(3, 5 if last else 4), temperature=0.5),
        r"All processes must have one width, got .*4.*, 5 by rank",
    ),
    "dtype": _both(
        lambda last: nt_xent_loss(*two_views(dtype=torch.float32 if last else torch.float64), temperature=0.5),
        r"All processes must have one dtype, got torch.float64.*, torch.float32 by rank",
    ),
    "temperature": _both(lambda last: nt_xent_loss(*two_views(), temperature=0.4 if last else 0.5), HYPERPARAMETERS),
    "reduction": _both(
        lambda last: nt_xent_loss(*two_views(), temperature=0.5, reduction="sum" if last else "mean"), HYPERPARAMETERS
    ),
    "decoupled": _both(lambda last: nt_xent_loss(*two_views(), temperature=0.5, decoupled=last), HYPERPARAMETERS),
    "symmetric": _both(lambda last: info_nce_loss(*two_views(), temperature=0.5, symmetric=last), HYPERPARAMETERS),
    "queue on one": _both(
        lambda last: info_nce_loss(*two_views(), temperature=0.5, negatives=rows(5) if last else None), HYPERPARAMETERS
    ),
    "views": _both(
        lambda last: sup_con_loss(torch.stack(two_views()) if last else rows(), _integers(0, 1, 0), temperature=0.5),
        HYPERPARAMETERS,
    ),
    "same domain": _both(
        lambda last: cross_domain_loss(
            rows(),
            _integers(0, 1, 0),
            _integers(0, 1, 2),
            temperature=0.5,
            same_domain="positive" if last else "ignore",
        ),
        HYPERPARAMETERS,
    ),
    "unlabelled": _both(
        lambda last: cross_domain_loss(
            rows(),
            _integers(0, 1, 0),
            _integers(0, 1, 2),
            temperature=0.5,
            unlabelled="own_domain" if last else "everywhere",
        ),
        HYPERPARAMETERS,
    ),
    "domains on one": _both(
        lambda last: count_positives(_integers(0, 1, 0), _integers(0, 1, 2) if last else None), HYPERPARAMETERS
    ),
    "other loss": _both(
        lambda last: (
            sup_con_loss(torch.stack(two_views()), _integers(0, 1, 0), temperature=0.5)
            if last
            else nt_xent_loss(*two_views(), temperature=0.5)
        ),
        HYPERPARAMETERS,
    ),
    "learnt temperature": _both(
        lambda last: info_nce_loss(*two_views(), temperature=torch.tensor(0.4 if last else 0.5)), HYPERPARAMETERS
    ),
    "longer queue": _both(
        lambda last: info_nce_loss(*two_views(), temperature=0.5, negatives=rows(5 if last else 4)), HYPERPARAMETERS
    ),
    # one process refuses, the others say so
    "temperature 0": _one(
        lambda last: nt_xent_loss(*two_views(), temperature=0 if last else 0.5), "`temperature` must be positive"
    ),
    "learnt temperature 0": _one(
        lambda last: info_nce_loss(*two_views(), temperature=torch.tensor(0.0 if last else 0.5)),
        "`temperature` must be positive",
    ),
    "unknown reduction": _one(
        lambda last: nt_xent_loss(*two_views(), temperature=0.5, reduction="avg" if last else "mean"),
        "`reduction` must be 'mean', 'sum' or 'none', got 'avg'",
    ),
    "no views": _one(lambda last: count_positives(_integers(0, 1, 0), views=0 if last else 1), "`views` must be"),
    "shape": _one(
        lambda last: nt_xent_loss(rows(3), rows(2 if last else 3), temperature=0.5),
        r"`z_a` and `z_b` must have one shape \(n, d\), got \(3, 4\) and \(2, 4\)",
    ),
    "nan": _one(
        lambda last: nt_xent_loss(rows(), with_nan(rows()) if last else rows(), temperature=0.5),
        "`z_a` and `z_b` must be finite, and so must the norms of their rows; row 4 is not",
    ),
    "integers": _one(
        lambda last: nt_xent_loss(
            *(z.long() if last else z for z in two_views()),
            temperature=0.5,
        ),
        "`z_a` and `z_b` must hold floating point numbers, got torch.int64",
        TypeError,
    ),
    "info_nce shape": _one(
        lambda last: info_nce_loss(*two_views(), temperature=0.5, negatives=rows(5, 3 if last else 4)),
        r"`negatives` must have shape \(k, 4\), got \(5, 3\)",
    ),
    "info_nce nan": _one(
        lambda last: info_nce_loss(rows(), with_nan(rows()) if last else rows(), temperature=0.5),
        "`key` must be finite, and so must the norms of their rows; row 1 is not",
    ),
    "labels": _one(
        lambda last: sup_con_loss(rows(), _integers(0, 1) if last else _integers(0, 1, 0), temperature=0.5),
        r"`labels` must have shape \(3,\), one for each image, got \(2,\)",
    ),
    "label below -1": _one(
        lambda last: sup_con_loss(rows(), _integers(0, 1, -2 if last else 0), temperature=0.5),
        "`labels` must be at least 0, or -1 for an image without label",
    ),
    "floating point labels": _one(
        lambda last: sup_con_loss(rows(), rows(3, 1)[:, 0] if last else _integers(0, 1, 0), temperature=0.5),
        "`labels` must hold integers, got torch.float64",
        TypeError,
    ),
    "domains": _one(
        lambda last: cross_domain_loss(
            rows(), _integers(0, 1, 0), _integers(0, 1, 2, 0) if last else _integers(0, 1, 2), temperature=0.5
        ),
        r"`domains` must have shape \(3,\), one for each image, got \(4,\)",
    ),
    "metrics shape": _one(
        lambda last: contrastive_metrics(rows(3), rows(2 if last else 3), temperature=0.5),
        r"`z_a` and `z_b` must have one shape \(n, d\), got \(3, 4\) and \(2, 4\)",
    ),
    "metrics nan": _one(
        lambda last: contrastive_metrics(with_nan(rows()) if last else rows(), rows(), temperature=0.5),
        "`z_a` must be finite",
    ),
    "count shape": _one(
        lambda last: count_positives(rows().long() if last else _integers(0, 1, 0)),
        r"`labels` must have shape \(12,\), one for each image, got \(3, 4\)",
    ),
    # none is wrong by itself, all together are
    "too few images": _both(
        lambda last: nt_xent_loss(*two_views(1 if last else 0), temperature=0.5),
        r"`z_a` and `z_b` must hold at least 2 images in all \(negatives\), got 1",
    ),
    "too few queries": _both(
        lambda last: info_nce_loss(*two_views(1 if last else 0), temperature=0.5),
        "`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got 1",
    ),
    "too few labelled images": _both(
        lambda last: sup_con_loss(rows(1 if last else 0), _integers(*[0] * last), temperature=0.5),
        r"`z` must hold at least 2 images in all \(negatives\), got 1",
    ),
    "too few to measure": _both(
        lambda last: contrastive_metrics(*two_views(1 if last else 0), temperature=0.5),
        r"`z_a` and `z_b` must hold at least 2 images in all \(negatives\), got 1",
    ),
    "one domain": _both(
        lambda last: cross_domain_loss(rows(), _integers(0, 1, 0), _integers(3, 3, 3), temperature=0.5),
        "`domains` must hold at least 2 different domains over the whole batch, got 1",
    ),
}
