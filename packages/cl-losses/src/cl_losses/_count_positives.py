"""Which rows a labelled loss can learn from."""

import torch
from torch import Tensor, distributed

from cl_losses._agree import Described, agree, gather_rows, group_name
from cl_losses._checks import check_labels, check_per_image, check_tensors
from cl_losses._cross_domain import SameDomain, check_same_domain
from cl_losses._deferred import raise_what_arrived
from cl_losses._positives import count_positives_of_rows, group_rows


@torch.no_grad()
def count_positives(
    labels: Tensor,
    domains: Tensor | None = None,
    *,
    views: int = 1,
    same_domain: SameDomain = "ignore",
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """The number of positives of each row: 0 for the rows that `sup_con_loss` or `cross_domain_loss` leaves out.

    Many zeros mean that a batch is too small for its classes, or holds too few domains of each.

    Args:
        labels: Shape (n,), integers, -1 for an image without label.
        domains: Shape (n,), integers, for `cross_domain_loss`; None for `sup_con_loss`.
        views: Views of each image.
        same_domain: As given to `cross_domain_loss`.
        gather: Count over all processes of `group` when torch.distributed is initialised.
        group: Process group; by default the default one.

    Returns:
        Shape (views * n,), int64: this process's rows, first views first.

    Raises:
        ValueError: The shapes differ or are not (n,), or `views` < 1.
        TypeError: `labels` or `domains` are not tensors of integers.
    """
    check_tensors(labels=labels)
    if domains is not None:
        check_tensors(domains=domains)

    def describe() -> Described:
        raise_what_arrived()
        check_same_domain(same_domain)
        if views < 1:
            raise ValueError(f"`views` must be at least 1, got {views}.")
        check_per_image(labels.numel(), device=labels.device, labels=labels)
        check_labels(labels)
        if domains is not None:
            check_per_image(labels.numel(), device=labels.device, domains=domains)
        return Described(labels.numel(), 0, torch.float32, labels.device, settings)

    settings: dict[str, object] = {"views": views, "same_domain": same_domain, "domains": domains is not None}
    processes = agree(describe, gather=gather, name=group_name(group))
    ignored = None if domains is None or same_domain == "positive" else gather_rows(domains.long(), processes)
    groups = group_rows(gather_rows(labels.long(), processes), ignored, shares=processes.shares, views=views)
    return count_positives_of_rows(groups)[processes.rows(views)]
