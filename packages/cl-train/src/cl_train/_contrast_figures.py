"""The figures that tell whether a contrast is well, for the log and for `judge`."""

from typing import Any

import torch
from cl_losses import NTXentLoss, contrastive_metrics
from torch import Tensor


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
