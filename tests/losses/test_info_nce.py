"""InfoNCE on one process: against its equation, the losses of CLIP and MoCo, and its closed forms.

Errors are measured as in test_nt_xent.py; n queries pull where there M rows do.
"""

import itertools
import math
import re
from typing import NamedTuple

import pytest
import torch
from _bounds import gradient_tolerance, normal, value_tolerance
from cl_losses import InfoNCELoss, info_nce_loss, nt_xent_loss
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

# All kinds of arithmetic: with running maxima, with tiles of float64, with tiles of the dtype of the embeddings.
TEMPERATURES = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0]
FLOATS = [torch.float32, torch.float64]


class Kind(NamedTuple):
    """Which of the loss's variants."""

    symmetric: bool
    decoupled: bool
    queue: bool

    @property
    def arguments(self) -> dict[str, bool]:
        return {"symmetric": self.symmetric, "decoupled": self.decoupled}

    def __str__(self) -> str:
        return " ".join(name for name, on in self._asdict().items() if on) or "plain"


KINDS = [Kind(*flags) for flags in itertools.product([False, True], repeat=3)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def info_nce_by_loops(
    query: Tensor, key: Tensor, negatives: Tensor, *, temperature: float, symmetric: bool, decoupled: bool
) -> Tensor:
    """Eq. 1 of arXiv:1911.05722, pair by pair; symmetric as Fig. 3 of arXiv:2103.00020: (n,)."""
    n = len(query)

    def exponential(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp((a * b).sum() / (a.norm() * b.norm()) / temperature)

    losses = []
    for i in range(n):
        numerator = exponential(query[i], key[i])
        denominator = sum(exponential(query[i], key[k]) for k in range(n) if not (decoupled and k == i))
        denominator += sum(exponential(query[i], row) for row in negatives)
        loss = -torch.log(numerator / denominator)
        if symmetric:
            denominator = sum(exponential(query[k], key[i]) for k in range(n) if not (decoupled and k == i))
            loss = (loss - torch.log(numerator / denominator)) / 2
        losses.append(loss)
    return torch.stack(losses)


def info_nce_dense(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    *,
    temperature: float | Tensor,
    symmetric: bool = False,
    decoupled: bool = False,
) -> Tensor:
    """The same with the whole matrix, in float64, where exponentials do not overflow: (n,)."""
    query, key = F.normalize(query.double(), dim=1), F.normalize(key.double(), dim=1)
    logits = query @ key.T / temperature
    left_out = torch.eye(len(query), dtype=torch.bool) & decoupled
    candidates = logits.masked_fill(left_out, -math.inf)
    among = candidates
    if negatives is not None:
        among = torch.cat([candidates, query @ F.normalize(negatives.double(), dim=1).T / temperature], dim=1)
    losses = among.logsumexp(1) - logits.diagonal()
    if symmetric:
        losses = (losses + candidates.logsumexp(0) - logits.diagonal()) / 2
    return losses


def rows(n: int = 5, k: int = 7, d: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and a queue."""
    return [normal(size, d, seed=3 * seed + place, dtype=dtype) for place, size in enumerate((n, n, k))]


def ours(query: Tensor, key: Tensor, negatives: Tensor | None, **arguments: object) -> Tensor:
    """The loss with positional negatives, as the twins have them."""
    return info_nce_loss(query, key, negatives=negatives, **arguments)


def gradients(batch: list[Tensor], loss=ours, **arguments: object) -> list[Tensor]:
    """Of the mean loss, for queries, keys and, if they are there, negatives."""
    leaves = [part.clone().requires_grad_() for part in batch]
    return list(torch.autograd.grad(loss(*leaves, *[None] * (3 - len(leaves)), **arguments).mean(), leaves))


def of_kind(batch: list[Tensor], kind: Kind) -> list[Tensor]:
    return batch if kind.queue else batch[:2]


def padded(batch: list[Tensor]) -> list[Tensor | None]:
    return [*batch, *[None] * (3 - len(batch))]


def hard_rows(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Batches that tiles of 4 x 4 cut at different places, and rows that are hard on the precision."""
    query, key, queue = rows(*{"two": (2, 1), "border": (8, 4), "before": (7, 3), "after": (9, 5)}.get(name, (6, 5)), 5)
    if name == "duplicates":
        query[3], key[1], key[2], queue[:2] = query[1], query[1], key[0], key[0]
    elif name == "found keys":
        key = query + 1e-4 * key
    elif name == "a queue of queries":
        queue = query[:5].clone()
    elif name == "opposite":
        key, queue = -query, -queue
    elif name == "collapsed":
        query[:], key[:], queue[:] = query[0], query[0], 2 * query[0]
    elif name == "zero rows":
        query[0], key[2], key[5], queue[3] = 0, 0, 0, 0
    elif name == "all scales":
        query, key, queue = (part * torch.logspace(-10, 10, len(part))[:, None] for part in (query, key, queue))
    elif name == "one number":
        query, key, queue = query[:, :1], key[:, :1], queue[:, :1]
    return [part.to(dtype) for part in (query, key, queue)]


HARD = ["two", "before", "border", "after", "duplicates", "found keys", "a queue of queries", "opposite", "collapsed"]
HARD += ["zero rows", "all scales", "one number"]


def gradient_error(actual: list[Tensor], expected: list[Tensor], batch: list[Tensor], *, temperature: float) -> float:
    """The error of the worst row's gradient, in units of 2 / (n temperature |z|)."""
    error = (torch.cat(actual).double() - torch.cat(expected)).norm(dim=1)
    norm = torch.cat(batch).double().norm(dim=1).clamp_min(1e-12)
    return (error * norm).max().item() * temperature * len(batch[0]) / 2


def assert_value_of_twin(batch: list[Tensor], name: str = "", *, temperature: float, **arguments: bool) -> None:
    actual = ours(*padded(batch), temperature=temperature, reduction="none", **arguments)
    expected = info_nce_dense(*padded(batch), temperature=temperature, **arguments)
    error = (actual.double() - expected).abs() / value_tolerance(expected, temperature=temperature, dtype=actual.dtype)
    assert error.max().item() <= 1, name


def assert_gradient_of_twin(batch: list[Tensor], name: str = "", *, temperature: float, **arguments: bool) -> None:
    actual = gradients(batch, temperature=temperature, **arguments)
    wide = [part.double() for part in batch]
    expected = gradients(wide, info_nce_dense, temperature=temperature, **arguments)
    error = gradient_error(actual, expected, batch, temperature=temperature)
    assert error <= gradient_tolerance(batch[0].dtype), name


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", 4)


# The equation


@every_kind
@pytest.mark.parametrize(("n", "k", "d"), [(2, 1, 3), (4, 3, 5)])
def test_the_dense_twin_is_the_equation(n, k, d, kind):
    query, key, queue = rows(n, k, d)
    negatives = queue if kind.queue else queue[:0]
    expected = info_nce_by_loops(query, key, negatives, temperature=0.3, **kind.arguments)
    actual = info_nce_dense(query, key, negatives, temperature=0.3, **kind.arguments)
    assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@every_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_of_each_row_equals_its_twin(temperature, dtype, kind):
    for name in HARD:
        assert_value_of_twin(of_kind(hard_rows(name, dtype), kind), name, temperature=temperature, **kind.arguments)


@every_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_has_the_gradient_of_its_twin(temperature, dtype, kind):
    for name in HARD:
        assert_gradient_of_twin(of_kind(hard_rows(name, dtype), kind), name, temperature=temperature, **kind.arguments)


@every_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_has_the_gradient_of_its_twin_for_weighted_rows(temperature, dtype, kind):
    batch = of_kind(hard_rows("after", dtype), kind)
    weights = normal(9, seed=8)
    weights[3] = 0

    def weighted(*parts: Tensor | None) -> Tensor:
        losses = ours(*parts, temperature=temperature, reduction="none", **kind.arguments)
        return losses * weights.to(dtype)

    def weighted_twin(*parts: Tensor | None) -> Tensor:
        return info_nce_dense(*parts, temperature=temperature, **kind.arguments) * weights.to(dtype)

    actual = gradients(batch, weighted)
    expected = gradients([part.double() for part in batch], weighted_twin)
    error = gradient_error(actual, expected, batch, temperature=temperature)
    assert error <= weights.abs().max() * gradient_tolerance(dtype)


@pytest.mark.parametrize(("n", "k"), [(511, 1), (512, 513), (513, 512), (1025, 511)])  # tiles are 512 x 512
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_info_nce_of_several_tiles_equals_its_twin(n, k, temperature):
    batch = rows(n, k, 8, dtype=torch.float32)
    assert_value_of_twin(batch, temperature=temperature, symmetric=True, decoupled=True)


@pytest.mark.parametrize(("n", "k"), [(511, 1), (512, 513), (513, 512), (1025, 511)])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_info_nce_of_several_tiles_has_the_gradient_of_its_twin(n, k, temperature):
    batch = rows(n, k, 8, dtype=torch.float32)
    assert_gradient_of_twin(batch, temperature=temperature, symmetric=True, decoupled=True)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_of_one_query_and_a_queue_equals_its_twin(temperature, decoupled):
    assert_value_of_twin(rows(1, 9), temperature=temperature, decoupled=decoupled)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_of_one_query_and_a_queue_has_the_gradient_of_its_twin(temperature, decoupled):
    assert_gradient_of_twin(rows(1, 9), temperature=temperature, decoupled=decoupled)


@every_kind
@pytest.mark.parametrize("seed", range(6))
def test_info_nce_of_random_sizes_has_value_and_gradient_of_its_twin(monkeypatch, seed, kind):
    n, k, d, size, cold = (
        int(torch.randint(low, high, (), generator=torch.Generator().manual_seed(10 * seed + place)))
        for place, (low, high) in enumerate([(2, 40), (1, 30), (1, 9), (1, 9), (1, 400)])
    )
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", size)
    batch = of_kind(rows(n, k, d, seed=seed, dtype=torch.float32), kind)
    assert_value_of_twin(batch, temperature=cold / 200, **kind.arguments)
    assert_gradient_of_twin(batch, temperature=cold / 200, **kind.arguments)


# Other losses


def test_info_nce_symmetric_is_the_loss_of_clip():
    images, texts, _ = rows(6)
    logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / 0.07
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert_close(info_nce_loss(images, texts, temperature=0.07, symmetric=True), expected, rtol=1e-13, atol=0)


def test_info_nce_symmetric_has_the_gradients_of_clip():
    def clip(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
        logits = logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
        labels = torch.arange(len(images))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def with_info_nce(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
        return info_nce_loss(images, texts, temperature=logit_scale.exp().reciprocal(), symmetric=True)

    batch = [*rows(6)[:2], torch.tensor(math.log(1 / 0.07), dtype=torch.float64)]
    assert_close(gradients(batch, with_info_nce), gradients(batch, clip), rtol=1e-12, atol=1e-14)


def moco(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """Algorithm 1 of arXiv:1911.05722, for queries of which each has its positive and the queue only."""
    query, key, queue = (F.normalize(part, dim=1) for part in (query, key, queue))
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1)
    return F.cross_entropy(logits / 0.07, torch.zeros(len(query), dtype=torch.int64))


def test_info_nce_of_one_query_and_a_queue_is_the_loss_of_moco():
    query, key, queue = rows(1, 9)
    actual = info_nce_loss(query, key, negatives=queue, temperature=0.07)
    assert_close(actual, moco(query, key, queue), rtol=1e-13, atol=0)


def test_info_nce_of_one_query_and_a_queue_has_the_gradients_of_moco():
    batch = rows(1, 9)
    assert_close(gradients(batch, temperature=0.07), gradients(batch, moco), rtol=1e-12, atol=1e-14)


def test_info_nce_of_a_queue_is_cross_entropy_over_keys_and_queue():
    query, key, queue = rows()
    candidates = F.normalize(torch.cat([key, queue]), dim=1)
    expected = F.cross_entropy(F.normalize(query, dim=1) @ candidates.T / 0.07, torch.arange(5))
    assert_close(info_nce_loss(query, key, negatives=queue, temperature=0.07), expected, rtol=1e-13, atol=0)


def test_info_nce_over_all_other_rows_is_nt_xent():
    z_a, z_b, _ = rows()  # a row's view and, as negatives, everything but the two
    losses = []
    for i in range(5):
        others = [k for k in range(5) if k != i]
        both = torch.cat([z_a[others], z_b[others]])
        losses.append(info_nce_loss(z_a[i : i + 1], z_b[i : i + 1], negatives=both, temperature=0.2))
    expected = nt_xent_loss(z_a, z_b, temperature=0.2, reduction="none")[:5]
    assert_close(torch.stack(losses), expected, rtol=1e-12, atol=1e-12)


# Closed forms


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.05, 1.0])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_info_nce_of_equal_rows_is_the_log_of_the_number_of_candidates(n, temperature, symmetric):
    z = torch.ones(n, 3)
    loss = info_nce_loss(z, z, temperature=temperature, symmetric=symmetric)
    assert loss.item() == pytest.approx(math.log(n), abs=1e-5)


def test_info_nce_of_equal_rows_counts_negatives():
    z = torch.ones(3, 4)
    loss = info_nce_loss(z, z, negatives=torch.ones(7, 4), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(10), abs=1e-5)


def test_decoupled_info_nce_of_equal_rows_counts_negatives_only():
    z = torch.ones(3, 4)
    loss = info_nce_loss(z, z, negatives=torch.ones(7, 4), temperature=0.1, decoupled=True)
    assert loss.item() == pytest.approx(math.log(9), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("sign", [1, -1])
def test_info_nce_of_orthogonal_pairs_is_its_closed_form(temperature, sign):
    z = torch.eye(4, dtype=torch.float64)
    loss = info_nce_loss(z, sign * z, temperature=temperature)
    x = math.log(3) - sign / temperature  # log(1 + 3 exp(-sign / tau))
    assert loss.item() == pytest.approx(max(x, 0) + math.log1p(math.exp(-abs(x))), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 0.5])
def test_decoupled_info_nce_of_orthogonal_pairs_is_its_closed_form(temperature):
    z = torch.eye(4, dtype=torch.float64)
    loss = info_nce_loss(z, z, temperature=temperature, decoupled=True, symmetric=True)
    assert loss.item() == pytest.approx(math.log(3) - 1 / temperature, rel=1e-12)


@pytest.mark.parametrize("temperature", [1e9, math.inf])
def test_info_nce_of_an_endless_temperature_is_the_log_of_the_number_of_candidates(temperature):
    query, key, queue = rows()
    loss = info_nce_loss(query, key, negatives=queue, temperature=temperature)
    assert loss.item() == pytest.approx(math.log(12), abs=1e-8)


def test_info_nce_is_the_softplus_of_decoupled_info_nce():
    query, key, queue = rows()  # log((P + N) / P) = log(1 + N / P)
    decoupled = ours(query, key, queue, temperature=0.2, decoupled=True, reduction="none")
    plain = ours(query, key, queue, temperature=0.2, reduction="none")
    assert_close(plain, F.softplus(decoupled), rtol=1e-12, atol=1e-13)


# Invariances


@every_kind
def test_info_nce_is_invariant_to_the_scale_of_its_inputs(kind):
    batch = of_kind(rows(), kind)
    scaled = [part * torch.logspace(-3, 3, len(part), dtype=torch.float64)[:, None] for part in batch]
    expected = ours(*padded(batch), temperature=0.5, **kind.arguments)
    assert_close(ours(*padded(scaled), temperature=0.5, **kind.arguments), expected, rtol=1e-13, atol=0)


@every_kind
def test_info_nce_has_no_gradient_along_its_inputs(kind):
    batch = of_kind(rows(), kind)
    for part, grad in zip(batch, gradients(batch, temperature=0.1, **kind.arguments), strict=True):
        assert grad.norm() > 0.05
        assert (part * grad).sum(dim=1).abs().max() < 1e-14


def test_info_nce_symmetric_does_not_tell_queries_from_keys():
    query, key, _ = rows()
    expected = info_nce_loss(query, key, temperature=0.1, symmetric=True)
    assert_close(info_nce_loss(key, query, temperature=0.1, symmetric=True), expected, rtol=1e-13, atol=0)


def test_info_nce_symmetric_is_the_mean_of_both_directions():
    query, key, _ = rows()
    expected = (info_nce_loss(query, key, temperature=0.1) + info_nce_loss(key, query, temperature=0.1)) / 2
    assert_close(info_nce_loss(query, key, temperature=0.1, symmetric=True), expected, rtol=1e-13, atol=0)


@every_kind
def test_info_nce_of_a_row_does_not_depend_on_the_order_of_the_rows(kind):
    query, key, queue = rows()
    order = torch.tensor([3, 0, 4, 1, 2])
    negatives = queue if kind.queue else None
    losses = ours(query, key, negatives, temperature=0.5, reduction="none", **kind.arguments)
    negatives = queue.flip(0) if kind.queue else None
    shuffled = ours(query[order], key[order], negatives, temperature=0.5, reduction="none", **kind.arguments)
    assert_close(shuffled, losses[order], rtol=1e-12, atol=1e-14)


@every_kind
def test_info_nce_is_invariant_to_a_common_rotation(kind):
    batch = of_kind(rows(), kind)
    rotation = torch.linalg.qr(normal(6, 6, seed=9)).Q
    expected = ours(*padded(batch), temperature=0.5, **kind.arguments)
    actual = ours(*padded([part @ rotation for part in batch]), temperature=0.5, **kind.arguments)
    assert_close(actual, expected, rtol=1e-13, atol=0)


# Who gets a gradient


@every_kind
def test_info_nce_gives_a_detached_key_no_gradient(kind):
    query, key, *queue = of_kind(rows(), kind)
    query.requires_grad_()
    ours(query, key, *queue or [None], temperature=0.1, **kind.arguments).backward()
    assert key.grad is None


@every_kind
def test_info_nce_gives_the_query_the_same_gradient_if_all_else_is_detached(kind):
    batch = of_kind(rows(), kind)
    expected, *_ = gradients(batch, temperature=0.1, **kind.arguments)
    query = batch[0].requires_grad_()
    (actual,) = torch.autograd.grad(ours(*padded(batch), temperature=0.1, **kind.arguments), query)
    assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("place", [1, 2])
def test_info_nce_gives_keys_or_negatives_their_gradient_if_all_else_is_detached(place):
    batch = rows()
    expected = gradients(batch, temperature=0.1)[place]
    batch[place].requires_grad_()
    (actual,) = torch.autograd.grad(ours(*batch, temperature=0.1), batch[place])
    assert_close(actual, expected, rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_has_the_same_gradient_a_second_time(temperature, kind):
    batch = [part.requires_grad_() for part in of_kind(rows(dtype=torch.float32), kind)]
    loss = ours(*padded(batch), temperature=temperature, **kind.arguments)
    first = torch.autograd.grad(loss, batch, retain_graph=True)
    assert_close(torch.autograd.grad(loss, batch), first, rtol=0, atol=0)


def test_info_nce_without_negatives_is_that_of_an_empty_queue():
    query, key, queue = rows()
    expected = info_nce_loss(query, key, temperature=0.1)
    assert_close(info_nce_loss(query, key, negatives=queue[:0], temperature=0.1), expected, rtol=0, atol=0)


def test_info_nce_gives_an_empty_queue_an_empty_gradient():
    query, key, queue = rows()
    *_, grad = gradients([query, key, queue[:0]], temperature=0.1)
    assert grad.shape == (0, 6)


def test_info_nce_of_one_tensor_as_query_and_key_adds_both_gradients():
    z, *_ = rows()
    both = gradients([z, z], temperature=0.5)
    (actual,) = gradients([z], lambda z, *_: info_nce_loss(z, z, temperature=0.5))
    assert_close(actual, both[0] + both[1], rtol=1e-13, atol=1e-15)


# A temperature that is learnt


@every_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
@pytest.mark.usefixtures("small_tiles")
def test_info_nce_has_the_gradient_of_its_twin_for_the_temperature(temperature, dtype, kind):
    for name in HARD:
        batch = of_kind(hard_rows(name, dtype), kind)
        tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        loss = ours(*padded(batch), temperature=tau, **kind.arguments)
        twin = info_nce_dense(*padded(batch), temperature=tau, **kind.arguments).mean()
        error = torch.autograd.grad(loss, tau)[0] - torch.autograd.grad(twin, tau)[0]
        assert error.abs() * temperature**2 / 2 <= gradient_tolerance(dtype), name  # cosines differ by at most 2


@every_kind
def test_info_nce_has_the_gradient_of_its_twin_for_the_temperature_of_weighted_rows(kind):
    batch, weights = of_kind(rows(), kind), normal(5, seed=8)
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    losses = ours(*padded(batch), temperature=tau, reduction="none", **kind.arguments)
    twin = info_nce_dense(*padded(batch), temperature=tau, **kind.arguments)
    (expected,) = torch.autograd.grad(twin @ weights, tau)
    assert_close(torch.autograd.grad(losses @ weights, tau)[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_info_nce_of_a_tensor_is_that_of_its_number(temperature):
    batch = rows()
    tau = torch.tensor(temperature, dtype=torch.float64)
    assert_close(ours(*batch, temperature=tau), ours(*batch, temperature=temperature), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_info_nce_has_the_same_gradient_if_the_temperature_is_learnt(temperature):
    batch = rows()
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    assert_close(gradients(batch, temperature=tau), gradients(batch, temperature=temperature), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_info_nce_gives_the_temperature_a_gradient_of_its_shape_and_dtype(shape, dtype):
    tau = torch.full(shape, 0.5, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(*rows(dtype=torch.float32), temperature=tau), tau)
    assert (grad.shape, grad.dtype) == (shape, dtype)


# Tiles


@every_kind
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_info_nce_does_not_depend_on_the_size_of_tiles(monkeypatch, size, kind):
    batch, temperature = of_kind(rows(), kind), 0.1
    expected = ours(*padded(batch), temperature=temperature, **kind.arguments)
    monkeypatch.setattr("cl_losses._tiles.CPU_TILE", size)
    actual = ours(*padded(batch), temperature=temperature, **kind.arguments)
    assert_close(actual, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("boundary", [0.05, 1 / 600])
def test_info_nce_does_not_jump_where_its_arithmetic_changes(boundary):
    below, above = (ours(*rows(), temperature=boundary * (1 + step), symmetric=True) for step in (-1e-12, 1e-12))
    assert_close(below, above, rtol=1e-11, atol=0)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
def test_info_nce_is_the_same_to_the_bit_when_repeated(temperature):
    batch = rows(600, 300, 8, dtype=torch.float32)
    arguments = {"temperature": temperature, "symmetric": True}
    first = ours(*batch, **arguments), *gradients(batch, **arguments)
    assert_close((ours(*batch, **arguments), *gradients(batch, **arguments)), first, rtol=0, atol=0)


def test_info_nce_leaves_its_inputs_alone():
    batch = rows()
    copies = [part.clone() for part in batch]
    gradients(batch, temperature=0.5)
    assert_close(batch, copies, rtol=0, atol=0)


def test_info_nce_without_gathering_is_itself_on_one_process():
    batch = rows()
    assert_close(ours(*batch, temperature=0.5, gather=False), ours(*batch, temperature=0.5), rtol=0, atol=0)


# Reductions


@every_kind
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_info_nce_reduces_its_rows(reduction, kind):
    batch = of_kind(rows(), kind)
    losses = ours(*padded(batch), temperature=0.5, reduction="none", **kind.arguments)
    actual = ours(*padded(batch), temperature=0.5, reduction=reduction, **kind.arguments)
    assert_close(actual, getattr(losses, reduction)(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_info_nce_has_the_gradient_of_its_reduced_rows(reduction):
    batch = rows()

    def reduced(*parts: Tensor) -> Tensor:
        return getattr(ours(*parts, temperature=0.5, reduction="none"), reduction)()

    actual = gradients(batch, temperature=0.5, reduction=reduction)
    assert_close(actual, gradients(batch, reduced), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("sum", ()), ("none", (5,))])
def test_info_nce_has_the_shape_of_its_reduction(reduction, shape):
    assert ours(*rows(), temperature=0.5, reduction=reduction).shape == shape


# Precision


@every_kind
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_info_nce_of_half_precision_is_float32s_on_the_rounded_input(dtype, temperature, kind):
    batch = of_kind(rows(dtype=dtype), kind)
    actual = ours(*padded(batch), temperature=temperature, **kind.arguments)
    expected = ours(*padded([part.float() for part in batch]), temperature=temperature, **kind.arguments)
    assert_close(actual, expected, rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_info_nce_gradient_of_half_precision_is_float32s_rounded(dtype, temperature, kind):
    batch = of_kind(rows(dtype=dtype), kind)
    expected = gradients([part.float() for part in batch], temperature=temperature, **kind.arguments)
    actual = gradients(batch, temperature=temperature, **kind.arguments)
    assert_close(actual, [grad.to(dtype) for grad in expected], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_info_nce_inside_autocast_is_float32s(dtype):
    batch = rows(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        actual = ours(*batch, temperature=0.1)
    assert_close(actual, ours(*batch, temperature=0.1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("temperature", [0.01, 0.5, torch.tensor(0.5, dtype=torch.float64)], ids=str)
def test_info_nce_keeps_float64_and_is_else_float32(temperature, given, returned):
    assert ours(*rows(dtype=given), temperature=temperature).dtype == returned


def test_info_nce_gives_each_input_a_gradient_of_its_own_dtype():
    query, key, queue = rows()
    grads = gradients([query.half(), key.float(), queue.bfloat16()], temperature=0.1)
    assert [grad.dtype for grad in grads] == [torch.float16, torch.float32, torch.bfloat16]


# The module


@every_kind
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_info_nce_module_equals_the_function(reduction, kind):
    batch = of_kind(rows(), kind)
    arguments = {"temperature": 0.2, "reduction": reduction, **kind.arguments}
    assert_close(InfoNCELoss(**arguments)(*batch), ours(*padded(batch), **arguments), rtol=0, atol=0)


def test_info_nce_module_prints_its_hyperparameters():
    text = repr(InfoNCELoss(temperature=0.2, symmetric=True, reduction="sum", gather=False))
    expected = "InfoNCELoss(temperature=0.2, symmetric=True, decoupled=False, reduction='sum', gather=False)"
    assert text == expected


# Errors


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(("shape_a", "shape_b"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3,), (3,)), ((2, 3, 4),) * 2])
def test_info_nce_says_which_shapes_do_not_fit(shape_a, shape_b):
    with raises(ValueError, f"`query` and `key` must have one shape (n, d), got {shape_a} and {shape_b}."):
        info_nce_loss(torch.ones(shape_a), torch.ones(shape_b), temperature=0.5)


@pytest.mark.parametrize("shape", [(7, 5), (4,), (1, 7, 4)])
def test_info_nce_says_which_shape_of_negatives_does_not_fit(shape):
    with raises(ValueError, f"`negatives` must have shape (k, 4), got {shape}."):
        info_nce_loss(torch.ones(3, 4), torch.ones(3, 4), negatives=torch.ones(shape), temperature=0.5)


def test_info_nce_says_that_integers_are_no_embeddings():
    integers = torch.ones(3, 4, dtype=torch.int64)
    with raises(TypeError, "`query` and `key` must hold floating point numbers, got torch.float32, torch.int64."):
        info_nce_loss(torch.ones(3, 4), integers, temperature=0.5)


def test_info_nce_says_that_integers_are_no_negatives():
    z, integers = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64)
    with raises(TypeError, "`query` and `negatives` must hold floating point numbers, got torch.float32, torch.int64."):
        info_nce_loss(z, z, negatives=integers, temperature=0.5)


def test_info_nce_says_that_its_inputs_must_be_on_one_device():
    z = torch.ones(3, 4)
    with raises(ValueError, "`query` and `negatives` must be on one device, got cpu, meta."):
        info_nce_loss(z, z, negatives=torch.ones(3, 4, device="meta"), temperature=0.5)


@pytest.mark.parametrize("temperature", [0, -0.5, math.nan])
def test_info_nce_says_that_the_temperature_must_be_positive(temperature):
    with raises(ValueError, f"`temperature` must be positive, got {float(temperature)}."):
        ours(*rows(), temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_info_nce_says_that_a_learnt_temperature_must_be_positive(temperature):
    with raises(ValueError, f"`temperature` must be positive, got {temperature}."):
        ours(*rows(), temperature=torch.tensor(temperature))


def test_info_nce_says_that_a_learnt_temperature_is_one_number():
    message = "`temperature` must be a number or a floating point tensor of one, got shape (2,) and torch.float32."
    with raises(ValueError, message):
        ours(*rows(), temperature=torch.ones(2))


def test_info_nce_says_that_a_learnt_temperature_is_no_integer():
    message = "`temperature` must be a number or a floating point tensor of one, got shape () and torch.int64."
    with raises(ValueError, message):
        ours(*rows(), temperature=torch.tensor(1))


def test_info_nce_module_says_at_once_that_the_temperature_must_be_positive():
    with raises(ValueError, "`temperature` must be positive, got -1."):
        InfoNCELoss(temperature=-1)


def test_info_nce_module_says_at_once_which_reductions_there_are():
    with raises(ValueError, "`reduction` must be 'mean', 'sum' or 'none', got 'median'."):
        InfoNCELoss(temperature=1, reduction="median")


def test_info_nce_says_which_reductions_there_are():
    with raises(ValueError, "`reduction` must be 'mean', 'sum' or 'none', got 'median'."):
        ours(*rows(), temperature=0.5, reduction="median")


@pytest.mark.parametrize("n", [0, 1])
def test_info_nce_says_that_one_row_has_no_negatives(n):
    z = torch.ones(n, 4)
    with raises(ValueError, f"`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got {n}."):
        info_nce_loss(z, z, temperature=0.5)


def test_info_nce_symmetric_says_that_negatives_are_none_of_the_only_key():
    z, queue = torch.ones(1, 4), torch.ones(7, 4)
    with raises(ValueError, "`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got 1."):
        info_nce_loss(z, z, negatives=queue, temperature=0.5, symmetric=True)


@pytest.mark.parametrize(("place", "name"), [(0, "query"), (1, "key"), (2, "negatives")])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_info_nce_says_which_row_is_not_finite(number, place, name):
    batch = rows()
    batch[place][3, 1] = number
    with raises(ValueError, f"`{name}` must be finite, and so must the norms of their rows; row 3 is not."):
        ours(*batch, temperature=0.5)


def test_info_nce_says_that_it_can_be_differentiated_once():
    query, key, _ = rows()
    loss = info_nce_loss(query.requires_grad_(), key, temperature=0.5)
    with pytest.raises(NotImplementedError, match="can be differentiated once: `create_graph` must be False"):
        torch.autograd.grad(loss, query, create_graph=True)
