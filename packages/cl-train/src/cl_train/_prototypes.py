"""Means of each class in each domain, for the rows whose class a batch holds in one domain only."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from cl_train._errors import InputError


class Prototypes(nn.Module):
    r"""Unit means of the projections of every class in every domain, which follow the batches.

    Where a batch has no image of a row's class in another domain, the mean of those that came before stands in for it.
    With prototypes $p_{dc}$ the loss of row $i$ is, averaged over the other domains $d$ that have its class $y$,

    $$-\log \frac{\exp(z_i p_{dy} / \tau)}{\sum_c \exp(z_i p_{dc} / \tau)},$$

    c over the classes of domain d that have been seen. Prototypes have no gradient.

    Args:
        domains: Number of domains.
        classes: Number of classes.
        width: Of the projections.
        decay: Weight of a prototype's old value where a batch has its class and domain, in [0, 1).
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, domains: int, classes: int, width: int, *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(domains, classes, width))
        self.register_buffer("seen", torch.zeros(domains, classes, dtype=torch.bool))

    def forward(self, z: Tensor, labels: Tensor, domains: Tensor, rows: Tensor, *, temperature: float) -> Tensor:
        """Mean over all rows of the loss of those that are chosen; 0 for those whose class no other domain has shown.

        Args:
            z: Projections, (m, d).
            labels: Class or -1, (m,).
            domains: (m,).
            rows: Which are chosen, bool, (m,); none without label.
            temperature: tau.

        Raises:
            InputError: Projections are not as wide as the prototypes.
        """
        if z.shape[1] != self.mean.shape[2]:
            raise InputError(f"`prototypes` must have the projections' width, {z.shape[1]}, got {self.mean.shape[2]}.")
        # a copy, as backward needs what `update` is about to change
        cosines = functional.normalize(z, dim=1) @ self.mean.flatten(0, 1).to(z.dtype, copy=True).T
        logits = (cosines / temperature).view(len(z), *self.seen.shape).masked_fill(~self.seen, -1e30)
        classes = labels.clamp_min(0)
        own = classes[:, None, None].expand(-1, len(self.seen), 1)
        losses = -logits.log_softmax(2).gather(2, own).squeeze(2)  # (m, domains)
        others = torch.arange(len(self.seen), device=z.device) != domains[:, None]
        there = self.seen.T[classes] & others & rows[:, None]
        return ((losses * there).sum(1) / there.sum(1).clamp_min(1)).mean()

    @torch.no_grad()
    def update(self, z: Tensor, labels: Tensor, domains: Tensor) -> None:
        """Move them towards the labelled rows of all processes."""
        known = (labels >= 0).to(self.mean.dtype)
        cell = domains * self.seen.shape[1] + labels.clamp_min(0)
        unit = functional.normalize(z.to(self.mean.dtype), dim=1)
        sums = self.mean.new_zeros(self.seen.numel(), z.shape[1] + 1)
        sums.index_add_(0, cell, torch.cat([unit, torch.ones_like(unit[:, :1])], dim=1) * known[:, None])
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(sums)
        here = (sums[:, -1] > 0).view_as(self.seen)
        fresh = functional.normalize(sums[:, :-1], dim=1).view_as(self.mean)
        weight = (1 - self.decay * self.seen.to(fresh.dtype)) * here
        self.mean.copy_(functional.normalize(self.mean.lerp(fresh, weight[..., None]), dim=2))
        self.seen.logical_or_(here)
