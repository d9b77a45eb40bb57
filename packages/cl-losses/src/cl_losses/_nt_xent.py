"""NT-Xent, the loss of SimCLR."""

from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from cl_losses._checks import check_rows, check_temperature
from cl_losses._gather import gather_rows, gather_sizes, is_parallel
from cl_losses._precision import float32_or_wider

Reduction = Literal["mean", "sum", "none"]


def nt_xent_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float,
    reduction: Reduction = "mean",
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Cross entropy of picking each row's other view out of the batch (NT-Xent).

    Rows `i` of `z_a` and `z_b` are two views of image `i`. Write $z_1 \dots z_{2n}$ for all rows, $j(i)$ for the
    other view of $i$ and $s_{ik}$ for the cosine of $z_i$ and $z_k$. The value is the mean over $i$ of Eq. 1,

    $$\ell_i = -\log \frac{\exp(s_{i,j(i)} / \tau)}{\sum_{k \ne i} \exp(s_{ik} / \tau)}.$$

    Several processes: with `gather`, every row is compared with the rows of all processes, each process calls this
    with its own share of the batch (shares may differ in size), and all get the same value. Gradients averaged over
    processes, as DistributedDataParallel does, are those of one process with the whole batch.

    The authors' code adds the means of the two views' rows instead of averaging over all: twice this value. With
    SGD that doubles the learning rate. With LARS it does so only for BatchNorm and biases, which LARS does not rescale,
    and weighs the decay of the other weights half as much against the gradient.

    Args:
        z_a: Projections of the first views, shape (n, d). Their scale is irrelevant: rows are normalised here.
        z_b: Projections of the second views, same shape and order.
        temperature: tau > 0, dimensionless. The paper uses 0.1 on ImageNet (Table 5) and 0.5 on CIFAR-10.
        reduction: "mean" over all 2n rows of all processes; "sum" of them; "none": the losses of this process's
            rows, first views first.
        gather: Take negatives from all processes of `group` when torch.distributed is initialised; without it from
            this process only, and the value is this process's.
        group: Process group; by default the default one.

    Returns:
        In nats, float32 (float64 for float64 input), also inside autocast: a scalar, or shape (2n,) for "none".
        log(2n - 1) when all rows are equal.

    Raises:
        ValueError: The shapes differ or are not (n, d), `temperature` <= 0, `reduction` is none of the three, or
            there are fewer than 2 images in all (no negatives).

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709.
    """
    check_rows(z_a=z_a, z_b=z_b)
    check_temperature(temperature)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none', got {reduction!r}.")
    n = len(z_a)
    parallel = gather and is_parallel(group)
    sizes = gather_sizes(n, device=z_a.device, group=group) if parallel else [n]
    total = sum(sizes)
    if total < 2:
        raise ValueError(f"`z_a` and `z_b` must hold at least 2 images in all (negatives), got {total}.")
    with torch.autocast(z_a.device.type, enabled=False):
        u_a = functional.normalize(float32_or_wider(z_a), dim=1)
        u_b = functional.normalize(float32_or_wider(z_b), dim=1)
        if parallel:
            all_a = gather_rows(u_a, sizes=sizes, group=group)
            all_b = gather_rows(u_b, sizes=sizes, group=group)
        else:
            all_a, all_b = u_a, u_b
        first = sum(sizes[: distributed.get_rank(group)]) if parallel else 0
        rows = _losses(u_a, u_b, all_a=all_a, all_b=all_b, first=first, temperature=temperature)
        if reduction == "none":
            return rows
        value = rows.sum() / (2 * total) if reduction == "mean" else rows.sum()
        return _sum_over_processes(value, group=group) if parallel else value


def _losses(u_a: Tensor, u_b: Tensor, *, all_a: Tensor, all_b: Tensor, first: int, temperature: float) -> Tensor:
    """Eq. 1 for this process's rows, whose place among all is first ... first + n of each view: shape (2n,)."""
    n, total = len(u_a), len(all_a)
    similarity = torch.cat([u_a, u_b]) @ torch.cat([all_a, all_b]).T / temperature
    row = torch.arange(n, device=u_a.device) + first
    self_at = torch.cat([row, row + total])
    other_at = torch.cat([row + total, row])
    # Fill, do not subtract a large number: -inf is exact whatever the temperature.
    similarity = similarity.scatter(1, self_at[:, None], -torch.inf)
    return functional.cross_entropy(similarity, other_at, reduction="none")


def _sum_over_processes(value: Tensor, *, group: distributed.ProcessGroup | None) -> Tensor:
    """The sum of every process's `value`, with a gradient that is right after averaging over processes.

    DDP divides the summed gradients by the number of processes, so this process's part is multiplied by it.
    """
    part = value * distributed.get_world_size(group)
    whole = value.detach().clone()
    distributed.all_reduce(whole, group=group)
    return whole + (part - part.detach())


class NTXentLoss(nn.Module):
    """`nt_xent_loss` as a module: hyperparameters here, tensors in the call.

    Args:
        temperature: tau > 0.
        reduction: "mean", "sum" or "none".
        gather: Take negatives from all processes.
        group: Process group; by default the default one.

    Shape:
        z_a (n, d), z_b (n, d) -> scalar, or (2n,) with reduction "none".

    Raises:
        ValueError: `temperature` <= 0; on call, as `nt_xent_loss`.
    """

    def __init__(
        self,
        *,
        temperature: float,
        reduction: Reduction = "mean",
        gather: bool = True,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.reduction, self.gather, self.group = temperature, reduction, gather, group

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views' projections."""
        return nt_xent_loss(
            z_a, z_b, temperature=self.temperature, reduction=self.reduction, gather=self.gather, group=self.group
        )

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}, gather={self.gather}"
