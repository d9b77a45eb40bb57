"""The batch of test_distributed.py, how processes share it, and the losses that are computed of it.

Imported by the tests, which compute what one process sees, and by _worker.py, one process of several.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from cl_losses import (
    byol_loss,
    contrastive_metrics,
    count_positives,
    cross_domain_loss,
    distillation_loss,
    info_nce_loss,
    nt_xent_loss,
    sup_con_loss,
)
from torch import Tensor

Tensors = dict[str, Tensor]
IMAGES = 12
# Of every number of processes: images of each.
SHARES: dict[int, dict[str, list[int]]] = {
    1: {"all": [12]},
    2: {"even": [6, 6], "uneven": [8, 4], "one image": [1, 11], "no image": [0, 12]},
    3: {"even": [4, 4, 4], "uneven": [3, 2, 7], "one image": [10, 1, 1], "no image": [5, 0, 7]},
    4: {"even": [3, 3, 3, 3], "uneven": [5, 1, 4, 2], "one image": [1, 9, 1, 1], "no image": [0, 4, 8, 0]},
}
# The processes of a group that gathers by itself.
MEMBERS = {3: [0, 2], 4: [1, 3]}


# What can be computed of an even share alone: it has images of several domains.
LOCAL = [
    "nt_xent",
    "nt_xent none",
    "info_nce symmetric",
    "info_nce queue",
    "sup_con two views",
    "cross_domain",
    "cross_domain own",
]


def batch() -> Tensors:
    """Rows before the shared weight, (images, ...) each, and what else a loss is given of each image."""
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(IMAGES)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(IMAGES, 3, 5),  # three views
        "upstream": torch.rand(IMAGES, 3, generator=generator, dtype=torch.float64) - 0.3,
        "labels": torch.tensor([0, 1, -1, 0, 2, 1, -1, 0, 3, 2, 1, 0]),
        "labels twice": image % 6,  # with even shares, all positives of an image are elsewhere
        "domains": torch.tensor([0, 1, 2, 2, 0, 0, 1, 1, 0, 2, 1, 1]),
        "domain halves": image // 6,  # with even shares of two or four processes, each has one domain
    }


def parameters() -> Tensors:
    """What all processes have in common."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    queue = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    logit_scale = torch.tensor(1.3, dtype=torch.float64)
    return {"weight": weight, "queue": queue, "logit_scale": logit_scale}


def share(tensors: Tensors, shares: Sequence[int], rank: int) -> Tensors:
    return {name: tensor.split(list(shares))[rank] for name, tensor in tensors.items()}


class Case(NamedTuple):
    """A loss of a share and the parameters, and how many views it has a loss of, 0 if it is reduced."""

    loss: Callable[..., Tensor]
    views: int = 0


def differentiate(case: Case, given: Tensors, parameters: Tensors, **collecting: Any) -> dict[str, Any]:
    """The value, and the gradient of every parameter; losses of rows are weighted, each row differently."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    value = objective = case.loss(given, leaves, **collecting)
    if case.views:
        value = value.view(case.views, given["x"].shape[0])
        objective = (value * given["upstream"][:, : case.views].t()).sum()
    grads = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves.values()]
    found = [zero if grad is None else grad for grad, zero in zip(grads, zeros, strict=True)]
    return {"value": value.detach(), "grads": dict(zip(leaves, found, strict=True))}


def projections(given: Tensors, parameters: Tensors, views: int) -> Tensor:
    """(views, n, 4), or (n, 4) of one view."""
    z = given["x"] @ parameters["weight"].t()
    return z[:, 0] if views == 1 else z[:, :views].transpose(0, 1)


def _nt_xent(temperature: float = 0.5, **arguments: Any) -> Case:
    def loss(given: Tensors, parameters: Tensors, **collecting: Any) -> Tensor:
        z_a, z_b = projections(given, parameters, 2)
        return nt_xent_loss(z_a, z_b, temperature=temperature, **arguments, **collecting)

    return Case(loss, 2 if arguments.get("reduction") == "none" else 0)


def _info_nce(*, queue: str = "", learnt: bool = False, key_detached: bool = False, **arguments: Any) -> Case:
    def loss(given: Tensors, parameters: Tensors, **collecting: Any) -> Tensor:
        query, key = projections(given, parameters, 2)
        key = key.detach() if key_detached else key
        temperature = parameters["logit_scale"].exp().reciprocal() if learnt else 0.3
        negatives = {"": None, "given": parameters["queue"].detach(), "learnt": parameters["queue"]}[queue]
        return info_nce_loss(query, key, temperature=temperature, negatives=negatives, **arguments, **collecting)

    return Case(loss, 1 if arguments.get("reduction") == "none" else 0)


def _sup_con(*, views: int, labels: str = "labels", **arguments: Any) -> Case:
    def loss(given: Tensors, parameters: Tensors, **collecting: Any) -> Tensor:
        z = projections(given, parameters, views)
        return sup_con_loss(z, given[labels], temperature=0.4, **arguments, **collecting)

    return Case(loss, views if arguments.get("reduction") == "none" else 0)


def _cross_domain(
    *, views: int, labels: str = "labels", domains: str = "domains", temperature: float = 0.4, **arguments: Any
) -> Case:
    def loss(given: Tensors, parameters: Tensors, **collecting: Any) -> Tensor:
        z = projections(given, parameters, views)
        return cross_domain_loss(z, given[labels], given[domains], temperature=temperature, **arguments, **collecting)

    return Case(loss, views if arguments.get("reduction") == "none" else 0)


# What gathers: as on one process whatever the shares.
GATHERING: dict[str, Case] = {
    "nt_xent": _nt_xent(),
    "nt_xent sum": _nt_xent(reduction="sum"),
    "nt_xent none": _nt_xent(reduction="none"),
    "nt_xent cold": _nt_xent(0.02),
    "nt_xent coldest": _nt_xent(0.001),
    "nt_xent decoupled": _nt_xent(decoupled=True),
    "nt_xent decoupled none": _nt_xent(decoupled=True, reduction="none"),
    "info_nce": _info_nce(),
    "info_nce sum": _info_nce(reduction="sum"),
    "info_nce none": _info_nce(reduction="none"),
    "info_nce decoupled": _info_nce(decoupled=True),
    "info_nce symmetric": _info_nce(symmetric=True),
    "info_nce symmetric none": _info_nce(symmetric=True, reduction="none"),
    "info_nce symmetric decoupled": _info_nce(symmetric=True, decoupled=True),
    "info_nce queue": _info_nce(queue="given", key_detached=True),
    "info_nce queue learnt": _info_nce(queue="learnt", decoupled=True),
    "info_nce queue symmetric": _info_nce(queue="learnt", symmetric=True, reduction="sum"),
    "info_nce temperature": _info_nce(learnt=True),
    "info_nce temperature symmetric": _info_nce(learnt=True, symmetric=True, reduction="sum"),
    "info_nce temperature queue none": _info_nce(learnt=True, queue="learnt", reduction="none"),
    "info_nce key detached": _info_nce(key_detached=True),
    "info_nce key detached symmetric": _info_nce(key_detached=True, symmetric=True),
    "sup_con": _sup_con(views=1),
    "sup_con two views": _sup_con(views=2),
    "sup_con three views sum": _sup_con(views=3, reduction="sum"),
    "sup_con two views none": _sup_con(views=2, reduction="none"),
    "sup_con positives elsewhere": _sup_con(views=1, labels="labels twice"),
    "cross_domain": _cross_domain(views=1),
    "cross_domain two views": _cross_domain(views=2),
    "cross_domain two views none": _cross_domain(views=2, reduction="none"),
    "cross_domain sum": _cross_domain(views=1, reduction="sum"),
    "cross_domain one each": _cross_domain(views=1, labels="labels twice", domains="domain halves"),
    "cross_domain one each, two views": _cross_domain(views=2, domains="domain halves"),
    "cross_domain positive": _cross_domain(views=1, same_domain="positive"),
    "cross_domain positive, two views": _cross_domain(views=2, same_domain="positive", domains="domain halves"),
    "cross_domain own": _cross_domain(views=1, unlabelled="own_domain"),
    "cross_domain own two views": _cross_domain(views=2, unlabelled="own_domain"),
    "cross_domain own three views none": _cross_domain(views=3, unlabelled="own_domain", reduction="none"),
    "cross_domain own, halves": _cross_domain(views=2, unlabelled="own_domain", domains="domain halves"),
    "cross_domain own positive": _cross_domain(
        views=2, unlabelled="own_domain", same_domain="positive", reduction="sum"
    ),
    "cross_domain own coldest": _cross_domain(views=2, unlabelled="own_domain", temperature=0.001),
}


def _byol(given: Tensors, parameters: Tensors) -> Tensor:
    prediction, target = projections(given, parameters, 2)
    return byol_loss(prediction, target)


def _distillation(given: Tensors, parameters: Tensors) -> Tensor:
    student, teacher = projections(given, parameters, 2)
    return distillation_loss(student, teacher, temperature=0.7)


# What needs no other row: the mean over own rows, as on one process where shares are equal.
OWN: dict[str, Case] = {"byol": Case(_byol), "distillation": Case(_distillation)}


def _metrics(given: Tensors, parameters: Tensors, **collecting: Any) -> Sequence[Tensor]:
    return contrastive_metrics(*projections(given, parameters, 2), temperature=0.2, **collecting)


def _count(*, views: int, domains: str = "", **arguments: Any) -> Callable[..., Tensor]:
    def count(given: Tensors, parameters: Tensors, **collecting: Any) -> Tensor:
        found = count_positives(
            given["labels"], given[domains] if domains else None, views=views, **arguments, **collecting
        )
        return found.view(views, given["x"].shape[0])

    return count


METRICS = _metrics
COUNTS: dict[str, Callable[..., Tensor]] = {
    "labels": _count(views=1),
    "labels, two views": _count(views=2),
    "domains": _count(views=1, domains="domains"),
    "domains, two views": _count(views=2, domains="domains"),
    "domains positive": _count(views=2, domains="domains", same_domain="positive"),
    "domain halves": _count(views=1, domains="domain halves"),
}


def golden() -> tuple[Tensor, Tensor]:
    """Two views of four images, of which the right numbers were worked out apart from this code."""
    k = torch.arange(32, dtype=torch.float64).reshape(4, 8)
    return torch.sin(0.7 * k + 0.3), torch.cos(1.3 * k + 0.1)
