"""What shows whether contrastive learning works, or collapses."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from cl_losses._agree import Described, Processes, agree, gather_rows, group_name
from cl_losses._checks import as_number, check_finite, check_images, check_rows, check_temperature, check_tensors
from cl_losses._deferred import raise_what_arrived
from cl_losses._log_sum_exp import choose, log_sums
from cl_losses._precision import wider, widest, without_autocast
from cl_losses._tiles import Band, Excluded, cuts, tile_size
from cl_losses._unit import unit_rows


class ContrastiveMetrics(NamedTuple):
    """What `contrastive_metrics` returns: scalars, and a vector over dimensions.

    Attributes:
        accuracy: Share of first views whose most similar second view is their own, 0 to 1. 1 / n is chance.
        entropy: Mean entropy in nats of the softmax over second views, 0 to log n, which all alike would give.
        alignment: Mean squared distance of an image's two unit rows, 0 to 4. 0 where they are equal.
        uniformity: Log of the mean of exp(-2 squared distance) over pairs of images, -8 to 0. 0 where all are equal,
            near -4 where rows are spread evenly in many dimensions.
        effective_rank: exp of the entropy of the rows' singular values, 1 to d: how many dimensions are used.
        std: Standard deviation of each of the unit rows' dimensions, (d,): 0 where all are equal, 1 / sqrt(d) where
            they are spread evenly.
    """

    accuracy: Tensor
    entropy: Tensor
    alignment: Tensor
    uniformity: Tensor
    effective_rank: Tensor
    std: Tensor


@torch.no_grad()
def contrastive_metrics(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float,
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> ContrastiveMetrics:
    r"""Contrastive accuracy and entropy, alignment, uniformity, effective rank and standard deviations.

    Rows `i` of `z_a` and `z_b` are two views of image `i`, $a_i$ and $b_i$ once normalised, of $n$ images. With
    $p_{ik} \propto \exp(a_i b_k / \tau)$ over the $n$ second views only, as the authors log it,

    $$\mathrm{accuracy} = \frac{1}{n} \sum_i [\mathrm{argmax}_k\, p_{ik} = i], \qquad
    \mathrm{entropy} = -\frac{1}{n} \sum_i \sum_k p_{ik} \log(p_{ik} + 10^{-8}),$$

    $$\mathrm{alignment} = \frac{1}{n} \sum_i \lVert a_i - b_i \rVert^2, \qquad
    \mathrm{uniformity} = \log \frac{1}{n(n-1)} \sum_{i \ne k} \exp(-2 \lVert a_i - a_k \rVert^2),$$

    uniformity being the mean of this and of the same of $b$. The effective rank is $\exp(-\sum_j q_j \log q_j)$, with
    $q$ the singular values of all $2n$ unit rows divided by their sum. It and `std` show collapse; the loss need not.

    Squared distances are 2 - 2 cos, so a row of zeros counts as orthogonal to all.

    Everything is over the images of all processes, the same on each. Nothing has a gradient, memory is linear in the
    number of rows, and the eigenvalues of a d x d matrix are computed; once in some tens of steps is enough.

    Args:
        z_a: Projections of the first views, shape (n, d). Normalised here.
        z_b: Projections of the second views, same shape and order.
        temperature: tau > 0, as in the loss.
        gather: Over all processes of `group` when torch.distributed is initialised.
        group: Process group; by default the default one.

    Returns:
        `ContrastiveMetrics`, float32 (float64 for float64 input), on the device of the rows.

    Raises:
        ValueError: The shapes differ or are not (n, d), `temperature` <= 0, a number is not finite (on a GPU raised by
            a later call), or there are fewer than 2 images in all.
        TypeError: An argument is not a tensor of floating point numbers, or `temperature` is a tensor.

    Chen et al. 2020, arXiv:2002.05709, Table 5 and code: accuracy, entropy. Wang and Isola 2020, arXiv:2005.10242:
    alignment, uniformity. Roy and Vetterli 2007, and Garrido et al. 2023, arXiv:2210.02885: effective rank. Chen and
    He 2021, arXiv:2011.10566: standard deviation.
    """
    check_tensors(z_a=z_a, z_b=z_b)
    temperature = as_number(temperature)
    dtype = wider(z_a.dtype, z_b.dtype)
    units: list[Tensor] = []

    def describe() -> Described:
        raise_what_arrived()
        check_temperature(temperature)
        check_rows(z_a=z_a, z_b=z_b)
        for name, part in (("z_a", z_a), ("z_b", z_b)):
            unit, norm = unit_rows(part, dtype=choose(temperature, dtype).dtype)
            check_finite(norm, name=f"`{name}`")
            units.append(unit)
        return Described(z_a.shape[0], z_a.shape[1], dtype, z_a.device, {"metrics": True, "temperature": temperature})

    with without_autocast(z_a):
        processes = agree(describe, gather=gather, name=group_name(group))
        check_images(processes.shares, name="`z_a` and `z_b`")
        a, b = units
        all_a, all_b = gather_rows(a, processes), gather_rows(b, processes)
        accuracy, entropy = _picked(a, all_b, processes, temperature=temperature)
        both = torch.stack([_uniformity(rows, processes) for rows in (all_a, all_b)])
        moments = _moments(all_a) + _moments(all_b)
        mean, second = moments[-1, :-1] / moments[-1, -1], moments.diagonal()[:-1] / moments[-1, -1]
        values = (
            accuracy,
            entropy,
            2 - 2 * (all_a * all_b).sum(1).mean(),
            both.mean(),
            _effective_rank(moments[:-1, :-1]),
            (second - mean.square()).clamp_min(0).sqrt(),
        )
    return ContrastiveMetrics(*(value.to(dtype) for value in values))


def _picked(a: Tensor, all_b: Tensor, processes: Processes, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Accuracy and entropy over the rows of all processes."""
    arithmetic = choose(temperature, a.dtype)
    logarithms = log_sums(a, all_b, arithmetic=arithmetic, excluded=Excluded()).rows
    best = torch.full_like(a[:, 0], -math.inf)
    place = torch.zeros_like(best, dtype=torch.int64)
    entropy = a.new_zeros(a.shape[0])
    size = tile_size(a)
    for rows in cuts(0, a.shape[0], size):
        scaled = a[rows] * arithmetic.scale
        for columns in cuts(0, all_b.shape[0], size):
            exponents = scaled @ all_b[columns].t()
            largest, at = exponents.max(1)
            better = largest > best[rows]
            best[rows] = torch.where(better, largest, best[rows])
            place[rows] = torch.where(better, at + columns.start, place[rows])
            p = (exponents - logarithms[rows, None]).exp2_().to(a.dtype)
            entropy[rows] -= (p * (p + 1e-8).log_()).sum(1)
    own = torch.arange(a.shape[0], device=a.device) + processes.rows(1).start
    found = torch.stack([(place == own).to(a.dtype), entropy], dim=1)
    accuracy, mean_entropy = gather_rows(found, processes).mean(0)
    return accuracy, mean_entropy


def _uniformity(rows: Tensor, processes: Processes) -> Tensor:
    """Of the unit rows of all processes; exp(-2 |x - y|^2) is exp(4 x.y - 4)."""
    n = rows.shape[0]
    arithmetic, itself = choose(1 / 4, rows.dtype), Excluded((Band(0, n, 0),))
    logarithms = log_sums(rows, rows, arithmetic=arithmetic, excluded=itself).rows * math.log(2)
    return logarithms.logsumexp(0) - math.log(n * (n - 1)) - 4


def _moments(rows: Tensor) -> Tensor:
    """[[Z^T Z, Z^T 1], [1^T Z, n]] in float64, (d + 1, d + 1)."""
    d = rows.shape[1]
    total = rows.new_zeros(d + 1, d + 1, dtype=widest(rows))
    for at in cuts(0, rows.shape[0], max(1, 2**20 // (d + 1))):
        part = torch.nn.functional.pad(rows[at].to(total.dtype), (0, 1), value=1.0)
        total.addmm_(part.t(), part)
    return total


def _effective_rank(gram: Tensor) -> Tensor:
    squares = torch.linalg.eigvalsh(gram)
    # What is 0 comes out as 1e-16 of the largest, and its root would count as 1e-8.
    noise = squares[-1] * len(squares) * torch.finfo(squares.dtype).eps
    singular = squares.masked_fill(squares < noise, 0).sqrt()
    q = singular / singular.sum().clamp_min(1e-300)
    return torch.special.entr(q).sum().exp()
