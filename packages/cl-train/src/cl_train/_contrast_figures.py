"""The figures that tell whether a contrast is well, for the log and for `judge`."""

from typing import Any

import torch
from cl_losses import NTXentLoss, contrastive_metrics
from torch import Tensor, distributed
from torch.nn import functional


def contrast_figures(z_a: Tensor, z_b: Tensor, *, loss: Any) -> dict[str, Tensor]:
    """Figures of two views' projections over all processes, the same on each.

    Args:
        z_a: Projections of the first views, shape (n, d).
        z_b: Projections of the second views, same shape and order.
        loss: What compares them. The entropy is that of its softmax, so it is there only for an `NTXentLoss`, whose
            temperature is known.

    Returns:
        Scalars: "accuracy", "alignment", "uniformity" and "effective_rank" as `cl_losses.contrastive_metrics` defines
        them, "spread", the mean of its `std` times sqrt(d): 1 where rows are spread evenly, 0 where all are equal; and
        perhaps "entropy" in nats.
    """
    known = isinstance(loss, NTXentLoss)
    found = contrastive_metrics(z_a, z_b, temperature=loss.temperature if known else 0.1)
    figures = {
        "accuracy": found.accuracy,
        "alignment": found.alignment,
        "uniformity": found.uniformity,
        "effective_rank": found.effective_rank,
        "spread": found.std.mean() * torch.tensor(float(z_a.shape[1])).sqrt().to(found.std),
    }
    return figures | {"entropy": found.entropy} if known else figures


def bootstrap_figures(embeddings: Any) -> dict[str, Tensor]:
    """Figures of BYOL's projections and of what keeps them apart, over all processes, the same on each.

    Args:
        embeddings: A `BYOLEmbeddings`.

    Returns:
        Those of `contrast_figures` for the online projections; "predictor_change", how far predictions are from the
        projections they are made of, and "target_lag", how far the target's projections are from the online network's
        of the same view: mean squared distances of unit rows, 0 to 4.
    """
    # float64, as a mean of float32 cosines of equal rows may be 1e-7 below 1
    p, q, z = (torch.cat(views).double() for views in (embeddings[0:2], embeddings[2:4], embeddings[4:6]))
    return contrast_figures(embeddings.p_a, embeddings.p_b, loss=None) | {
        "predictor_change": _distance(q, p),
        "target_lag": _distance(z, p),
    }


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of unit rows, over all processes."""
    squares = (functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square().sum(1)
    sums = torch.stack([squares.sum(), squares.new_tensor(float(len(squares)))])
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(sums)
    return sums[0] / sums[1]
