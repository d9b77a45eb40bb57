"""What features carry from one domain to another, and how far the domains lie apart in them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._errors import InputError
from cl_train._logistic import fit_logistic
from cl_train._scores import Scores, check_features, scores

_ROWS = 1024  # at a time


@dataclass(frozen=True)
class TransferScores(Scores):
    """Scores of a probe that has seen labels of the source domain only, on the target domain; and two distances.

    Attributes:
        retrieval: Share of target images whose nearest source image, by cosine, is of their class, in [0, 1].
        domain_top1: Share of held-out images whose domain a linear probe names rightly, domains weighing the same: 0.5
            where features do not tell domains apart, 1 where they do.
    """

    retrieval: float
    domain_top1: float


def transfer_eval(
    source_x: Tensor,
    source_y: Tensor,
    target_x: Tensor,
    target_y: Tensor,
    *,
    C: float = 1.0,  # noqa: N803
    seed: int = 0,
) -> TransferScores:
    """Accuracy on a domain of a logistic regression that was fitted to another, and how well domains are told apart.

    Rows are scaled to unit length. Labels of the target are used for nothing but counting.

    Args:
        source_x: Features of the domain with labels, (n, d).
        source_y: Its classes from 0, integers, (n,).
        target_x: Features of test images of the other domain, (m, d).
        target_y: Their classes, (m,).
        C: Inverse strength of the L2 regularisation, as scikit-learn's, > 0. Weak regularisation fits the source to the
            last image, at the cost of the target.
        seed: Seed of the halves of each domain by which the domains are told apart.

    Returns:
        Accuracies, retrieval and the accuracy of the domain probe.

    Raises:
        InputError: Features and labels do not fit, `C` is not positive, or a domain has fewer than 2 rows.
    """
    classes = check_features(source_x, source_y, target_x, target_y, name="target", train="source")
    if not C > 0:
        raise InputError(f"`C` must be positive, got {C}.")
    for name, rows in (("source_x", source_x), ("target_x", target_x)):
        if len(rows) < 2:
            raise InputError(f"`{name}` must have at least 2 rows, got {len(rows)}.")
    source, target = (functional.normalize(rows.float(), dim=1) for rows in (source_x, target_x))
    weight, bias = fit_logistic(source, source_y.long(), classes=classes, penalty=1 / C)
    found = scores(target.double() @ weight.T + bias, target_y)
    nearest = torch.cat([(rows @ source.T).argmax(1) for rows in target.split(_ROWS)])
    retrieval = float((source_y[nearest] == target_y).double().mean())
    domain_top1 = _domain_probe(source, target, C=C, seed=seed)
    return TransferScores(**vars(found), retrieval=retrieval, domain_top1=domain_top1)


def _domain_probe(source: Tensor, target: Tensor, *, C: float, seed: int) -> float:  # noqa: N803
    """Mean share of both domains' held-out rows that are named rightly, after a fit to as many rows of each."""
    generator = torch.Generator().manual_seed(seed)
    half = min(len(source), len(target)) // 2
    fitted, held_out = [], []
    for rows in (source, target):
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        fitted.append(rows[order[:half]])
        held_out.append(rows[order[half:]])
    y = torch.arange(2, device=source.device).repeat_interleave(half)
    weight, bias = fit_logistic(torch.cat(fitted), y, classes=2, penalty=1 / C)
    hits = [((rows.double() @ weight.T + bias).argmax(1) == domain) for domain, rows in enumerate(held_out)]
    return sum(float(each.double().mean()) for each in hits) / 2
