"""Contrast across domains as a method: what its loss is given, its prototypes, and a run that goes on."""

import copy
import math
import re
from itertools import pairwise

import pytest
import tiny
import torch
from cl_augment import SimCLRAugment, sample_keys
from cl_losses import CrossDomainLoss
from cl_train import (
    ArrayDataset,
    CrossDomain,
    DomainBatches,
    DomainDataset,
    InputError,
    Method,
    Relabelled,
    make_accelerator,
    pretrain,
    prototypes_of,
)
from cl_train._loader import Batch
from cl_train._prototypes import Prototypes
from cl_train._simclr import SimCLREmbeddings
from cl_train._step import Gradient
from torch import Tensor, nn
from torch.testing import assert_close

BATCH, EPOCHS, TAU = 12, 3, 0.3
NAMES = ["a", "b", "c"]


class Net(nn.Module):
    """Nothing in it looks at more than one image."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.GroupNorm(2, 6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prototypes(domains: int = 2, classes: int = 3, width: int = 4, *, decay: float = 0.8) -> Prototypes:
    return Prototypes(domains, classes, width, decay=decay).double()


def cross_domain(
    *, loss=None, with_prototypes: bool = True, num_classes: int | None = 3, domains: int = 2, kind=CrossDomain
) -> CrossDomain:
    """Equal at each call, in float64."""
    torch.manual_seed(0)
    loss = loss or CrossDomainLoss(temperature=TAU, unlabelled="own_domain")
    means = prototypes(domains) if with_prototypes else None
    return kind(Net(), nn.Linear(6, 4), SimCLRAugment(8), loss, num_classes=num_classes, prototypes=means).double()


def data() -> DomainDataset:
    """24 labelled images and 18 more, of which 6 have a label; the second domain lacks class c."""
    pixels = torch.rand(42, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.where(torch.arange(18) < 6, torch.arange(18) % 2, -1)
    real = Relabelled(ArrayDataset(pixels[24:]), labels, classes=NAMES[:2])
    return DomainDataset({"synthetic": ArrayDataset(pixels[:24], torch.arange(24) % 3, classes=NAMES), "real": real})


def run(out, method: CrossDomain, **changes):
    dataset = data()
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "warmup_epochs": 0, "log_every": 1, "checkpoint_every": 1}
    settings |= {"keep_checkpoints": 20, "workers": 0, "mixed_precision": "no", "progress": False}
    settings |= {"sampler": DomainBatches(dataset, batch_size=BATCH, unlabelled=0.5)}
    optimizer = torch.optim.SGD(method.parameters(), 0.3, momentum=0.9, weight_decay=1e-3)
    return pretrain(method, dataset, out=out, optimizer=optimizer, **settings | changes)


STEPS = EPOCHS * (42 // BATCH)


def embeddings(n: int, *, logits: bool = False, seed: int = 0) -> SimCLREmbeddings:
    z_a, z_b = random(2, n, 4, seed=seed)
    return SimCLREmbeddings(z_a, z_b, *(random(2, n, 3, seed=seed + 1) if logits else (None, None)))


def targets(labels: list[int], domains: list[int]) -> Tensor:
    return torch.tensor([labels, domains]).T


LABELS, DOMAINS = [0, 0, 1, 2, -1, 1, -1, 2, 2], [0, 1, 0, 0, 0, 0, 1, 1, 0]
MET = [True, True, False, True, False, False, False, True, True]


def unit(row: list[float]) -> list[float]:
    length = math.hypot(*row)
    return [x / length for x in row] if length else row


# The loss


def test_the_loss_is_given_both_views_and_classes_and_domains_apart():
    seen = []

    def loss(z: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        seen.append((z, labels, domains))
        return z.square().sum()

    given = embeddings(9)
    found, metrics = cross_domain(loss=loss, with_prototypes=False, num_classes=None).loss(
        given, targets(LABELS, DOMAINS)
    )
    ((z, labels, domains),) = seen
    assert torch.equal(z, torch.stack([given.z_a, given.z_b]))
    assert (labels.tolist(), domains.tolist()) == (LABELS, DOMAINS)
    assert found.item() == metrics["loss"].item() == z.square().sum().item()
    assert metrics.keys() == {"loss", "partners"}


def test_the_loss_is_that_of_a_loop_over_partners():
    given = embeddings(9)
    rows = [unit(row) for row in torch.cat([given.z_a, given.z_b]).tolist()]
    y, d = 2 * LABELS, 2 * DOMAINS
    values = []
    for i in range(18):
        cosines = [sum(a * b for a, b in zip(rows[i], row, strict=True)) / TAU for row in rows]
        alike = [y[k] == y[i] >= 0 for k in range(18)]
        partners = [k for k in range(18) if k != i and (k % 9 == i % 9 or (alike[k] and d[k] != d[i]))]
        foreign = [y[i] < 0 or y[k] < 0 if d[k] != d[i] else False for k in range(18)]
        others = [k for k in range(18) if k % 9 != i % 9 and not alike[k] and not foreign[k]]
        total = sum(math.exp(cosines[k]) for k in partners + others)
        values.append(-sum(math.log(math.exp(cosines[p]) / total) for p in partners) / len(partners))
    found = cross_domain(with_prototypes=False, num_classes=None).loss(given, targets(LABELS, DOMAINS))[0]
    assert found.item() == pytest.approx(sum(values) / 18, rel=1e-12)


def test_partners_are_the_share_of_labelled_images_whose_class_is_in_another_domain():
    met = []
    for i, (y, d) in enumerate(zip(LABELS, DOMAINS, strict=True)):
        met.append(y >= 0 and any(LABELS[k] == y and DOMAINS[k] != d for k in range(9) if k != i))
    assert met == MET
    expected = sum(met) / sum(y >= 0 for y in LABELS)
    found = cross_domain().loss(embeddings(9, logits=True), targets(LABELS, DOMAINS))[1]["partners"]
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_probe_learns_from_labelled_images_of_all_domains_only():
    given, method = embeddings(9, logits=True), cross_domain(with_prototypes=False)
    loss, metrics = method.loss(given, targets(LABELS, DOMAINS))
    entropies, hits = [], []
    for logits in (given.logits_a, given.logits_b):
        for row, label in zip(logits.tolist(), LABELS, strict=True):
            if label >= 0:
                entropies.append(math.log(sum(map(math.exp, row))) - row[label])
                hits.append(row.index(max(row)) == label)
    assert (loss - metrics["loss"]).item() == pytest.approx(sum(entropies) / 14, rel=1e-12)
    assert metrics["probe_top1"].item() == pytest.approx(sum(hits) / 14, rel=1e-6)
    assert 0 < sum(hits) < 14


def test_the_probe_sends_no_gradient_to_the_encoder():
    method = cross_domain(loss=lambda z, labels, domains: 0 * z.sum(), with_prototypes=False)
    views = torch.rand(18, 3, 8, 8, dtype=torch.float64)
    method.loss(method(views), targets(LABELS, DOMAINS))[0].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad.abs().max() > 0) == name.startswith("probe."), name


def test_images_without_any_label_have_a_finite_loss_and_move_neither_probe_nor_prototypes():
    method = cross_domain()
    views = torch.rand(18, 3, 8, 8, dtype=torch.float64)
    loss, metrics = method.loss(method(views), targets([-1] * 9, DOMAINS))
    loss.backward()
    assert loss.item() == metrics["loss"].item() > 0
    assert metrics["partners"] == metrics["probe_top1"] == 0
    assert method.probe.weight.grad.abs().max() == 0
    assert all(bool(parameter.grad.isfinite().all()) for parameter in method.parameters())
    assert not method.prototypes.seen.any()


@pytest.mark.parametrize("labels", [None, torch.zeros(9, dtype=torch.int64)])
def test_a_data_set_without_domains_is_refused(labels):
    message = "`dataset` must be a DomainDataset: CrossDomain needs class and domain of each image."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cross_domain().loss(embeddings(9, logits=True), labels)


def test_a_run_on_a_data_set_without_domains_is_refused(tmp_path):
    images = data().images
    with pytest.raises(InputError, match=r"^`dataset` must be a DomainDataset"):
        pretrain(
            cross_domain(),
            ArrayDataset(images, torch.arange(len(images)) % 3),
            epochs=1,
            batch_size=BATCH,
            out=tmp_path,
            mixed_precision="no",
            progress=False,
        )


# Prototypes


def test_prototypes_need_a_temperature():
    message = "`prototypes` need a `loss` with a `temperature`, such as CrossDomainLoss."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cross_domain(loss=lambda z, labels, domains: z.sum())


@pytest.mark.parametrize(
    ("width", "decay", "message"),
    [
        (0, 0.9, "`width` must be at least 1, got 0."),
        (4, 1.0, "`decay` must be in [0, 1), got 1.0."),
        (4, -0.1, "`decay` must be in [0, 1), got -0.1."),
    ],
)
def test_prototypes_out_of_range_are_refused(width, decay, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        prototypes_of(data(), width, decay=decay)


def test_prototypes_of_another_width_than_the_projections_are_refused():
    method = cross_domain()
    method.prototypes = prototypes(width=5)
    message = "`prototypes` must have the projections' width, 4, got 5."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        method.loss(embeddings(9, logits=True), targets(LABELS, DOMAINS))


def test_prototypes_of_a_data_set_have_its_domains_and_classes():
    found = prototypes_of(data(), 5, decay=0.3)
    assert found.mean.shape == (2, 3, 5)
    assert not found.seen.any()
    assert found.decay == 0.3


def batches(*, domains: int = 3, classes: int = 4, steps: int = 4, n: int = 10) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for step in range(steps):
        labels = torch.randint(-1, classes, (n,), generator=generator)
        found.append((random(n, 5, seed=step), labels, torch.randint(domains, (n,), generator=generator)))
    return found


def looped(steps, *, decay: float) -> dict[tuple[int, int], list[float]]:
    """Prototypes by domain and class, of those that were seen."""
    found: dict[tuple[int, int], list[float]] = {}
    for z, labels, domains in steps:
        sums: dict[tuple[int, int], list[float]] = {}
        for row, y, d in zip(z.tolist(), labels.tolist(), domains.tolist(), strict=True):
            if y >= 0:
                old = sums.get((d, y), [0.0] * len(row))
                sums[d, y] = [a + b for a, b in zip(old, unit(row), strict=True)]
        for cell, total in sums.items():
            fresh, old = unit(total), found.get(cell)
            if old is not None:
                fresh = unit([decay * a + (1 - decay) * b for a, b in zip(old, fresh, strict=True)])
            found[cell] = fresh
    return found


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_prototypes_follow_the_unit_means_of_each_class_in_each_domain(decay, steps):
    module = prototypes(3, 4, 5, decay=decay)
    for step in batches(steps=steps):
        module.update(*step)
    expected = looped(batches(steps=steps), decay=decay)
    assert 0 < len(expected) <= 12
    assert {(d, y) for d, y in module.seen.nonzero().tolist()} == set(expected)
    for d in range(3):
        for y in range(4):
            assert module.mean[d, y].tolist() == pytest.approx(expected.get((d, y), [0.0] * 5), abs=1e-14)


def test_a_prototype_at_first_sight_is_the_mean_of_the_batch_whatever_the_decay():
    module = prototypes(2, 2, 2, decay=0.99)
    module.update(torch.tensor([[3.0, 0.0], [0.0, 9.0]]).double(), torch.tensor([1, 1]), torch.tensor([0, 0]))
    assert module.mean[0, 1].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert module.seen.tolist() == [[False, True], [False, False]]


def loop_loss(module: Prototypes, z: Tensor, labels, domains, rows) -> float:
    means, seen = module.mean.tolist(), module.seen.tolist()
    total = 0.0
    for row, y, own, chosen in zip(z.tolist(), labels, domains, rows, strict=True):
        values = []
        for d in range(len(seen)):
            if chosen and d != own and seen[d][y]:
                cosines = {
                    c: sum(a * b for a, b in zip(unit(row), means[d][c], strict=True)) / TAU
                    for c in range(len(seen[d]))
                    if seen[d][c]
                }
                values.append(math.log(sum(map(math.exp, cosines.values()))) - cosines[y])
        total += sum(values) / len(values) if values else 0.0
    return total / len(z)


def filled(domains: int = 3, classes: int = 4, width: int = 5) -> Prototypes:
    module = prototypes(domains, classes, width)
    z, labels, where = random(9, width, seed=9), torch.arange(9) % classes, torch.arange(9) % domains
    module.update(z, labels, where)
    return module


def test_the_loss_of_prototypes_is_that_of_a_loop():
    module = filled()
    assert module.seen.sum() == 9  # of 12: each domain lacks a class
    z, labels, domains = random(20, 5), torch.arange(20) % 4, torch.arange(20) // 4 % 3
    rows = torch.arange(20) % 5 < 3
    found = module(z, labels, domains, rows, temperature=TAU)
    expected = loop_loss(module, z, labels.tolist(), domains.tolist(), rows.tolist())
    assert expected > 0.1
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_row_whose_class_no_other_domain_has_shown_has_no_loss():
    module = prototypes(2, 3, 4)
    module.update(random(2, 4), torch.tensor([0, 1]), torch.tensor([0, 0]))
    z, yes = random(3, 4, seed=1).requires_grad_(), torch.tensor([True] * 3)
    loss = module(z, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), yes, temperature=TAU)
    loss.backward()
    assert loss.item() == 0
    assert z.grad.abs().max() == 0


def test_equal_prototypes_cost_the_logarithm_of_the_number_of_classes_seen():
    module = prototypes(2, 5, 3)
    module.mean[1, :4], module.seen[1, :4] = torch.tensor([1.0, 0.0, 0.0]).double(), True
    loss = module(random(6, 3), torch.arange(6) % 4, torch.zeros(6).long(), torch.tensor([True] * 6), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-12)


def test_prototypes_add_the_loss_of_labelled_images_without_partner_only():
    method, plain = cross_domain(num_classes=None, domains=3), cross_domain(num_classes=None, with_prototypes=False)
    method.prototypes.update(random(9, 4, seed=9), torch.arange(9) % 3, torch.arange(9) // 3)
    given, both = embeddings(9), targets(LABELS, DOMAINS)
    alone = [y >= 0 and not met for y, met in zip(LABELS, MET, strict=True)]
    assert sum(alone) == 2
    z = torch.cat([given.z_a, given.z_b])
    expected = loop_loss(method.prototypes, z, 2 * LABELS, 2 * DOMAINS, 2 * alone)
    found = method.loss(given, both)[0] - plain.loss(given, both)[0]
    assert expected > 0.05
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_the_loss_of_a_step_is_by_the_prototypes_before_it():
    given, both = embeddings(9), targets(LABELS, DOMAINS)
    method, plain = cross_domain(num_classes=None), cross_domain(num_classes=None, with_prototypes=False)
    assert method.loss(given, both)[0].item() == plain.loss(given, both)[0].item()  # none was seen
    z = torch.cat([given.z_a, given.z_b])
    expected = looped([(z, torch.tensor(2 * LABELS), torch.tensor(2 * DOMAINS))], decay=0.8)
    for (d, y), mean in expected.items():
        assert method.prototypes.mean[d, y].tolist() == pytest.approx(mean, abs=1e-14)


def test_nothing_with_a_gradient_reaches_prototypes():
    method = cross_domain()
    for _ in range(2):
        views = torch.rand(18, 3, 8, 8, dtype=torch.float64)
        method.loss(method(views), targets(LABELS, DOMAINS))[0].backward()
    assert not method.prototypes.mean.requires_grad
    assert not list(method.prototypes.parameters())
    assert {"prototypes.mean", "prototypes.seen"} <= method.state_dict().keys()


def test_the_gradient_of_prototypes_is_that_of_finite_differences():
    module, z = filled(), random(6, 5).requires_grad_()
    labels, domains, rows = torch.arange(6) % 4, torch.arange(6) % 3, torch.tensor([True] * 6)
    assert torch.autograd.gradcheck(lambda z: module(z, labels, domains, rows, temperature=TAU), z)


# Steps


def batch() -> Batch:
    dataset = data()
    ids = DomainBatches(dataset, batch_size=BATCH, unlabelled=0.5)(0)
    return Batch(dataset.images[ids], sample_keys(ids, seed=0, epoch=0), dataset.targets(ids))


def found(method: CrossDomain, *, chunk_size: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, metrics and buffers after a step's gradient."""
    method = copy.deepcopy(method)
    gradient = Gradient(method, method, make_accelerator("no"), method.views, BATCH, chunk_size, 1, "local", seed=3)
    metrics = gradient(batch(), 0)
    return {name: p.grad for name, p in method.named_parameters()}, metrics, dict(method.named_buffers())


@pytest.mark.parametrize("chunk_size", range(1, BATCH + 2))
def test_chunks_of_any_size_give_the_gradient_of_the_whole_batch(chunk_size):
    method = cross_domain()
    method.prototypes.update(random(6, 4), torch.arange(6) % 3, torch.arange(6) // 3)
    whole, metrics, buffers = found(method, chunk_size=BATCH)
    assert 0 < metrics["partners"] < 1
    grads, chunked_metrics, chunked_buffers = found(method, chunk_size=chunk_size)
    assert_close(grads, whole, rtol=1e-10, atol=1e-12)
    assert_close(chunked_metrics, metrics, rtol=1e-10, atol=1e-12)
    assert_close(chunked_buffers, buffers, rtol=1e-10, atol=1e-12)


class Recorded(CrossDomain):
    """Notes its prototypes at the start of each step, and may spoil the loss of some."""

    bad = ()

    def forward(self, views):
        self.noted = [*getattr(self, "noted", []), {n: v.clone() for n, v in self.prototypes.state_dict().items()}]
        return super().forward(views)

    def loss(self, embeddings, labels):
        loss, metrics = super().loss(embeddings, labels)
        return (loss * torch.nan if len(self.noted) - 1 in self.bad else loss), metrics


def test_a_step_that_is_taken_back_leaves_prototypes_as_they_were(tmp_path):
    method = cross_domain(kind=Recorded)
    method.bad = [0, 4]
    assert run(tmp_path, method, on_nonfinite="skip").skipped_steps == 2
    noted = [*method.noted, dict(method.prototypes.state_dict())]
    assert len(noted) == STEPS + 1
    moved = [tiny.gap(after, before) > 0 for before, after in pairwise(noted)]
    assert moved == [step not in method.bad for step in range(STEPS)]


@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_that_was_cut_ends_as_the_uncut_one_bit_for_bit(tmp_path, cut):
    run(tmp_path / "whole", cross_domain())
    run(tmp_path / "cut", cross_domain(), max_steps=cut)
    method = cross_domain()
    run(tmp_path / "cut", method)
    whole = tiny.saved(tmp_path / "whole", step=STEPS)
    assert tiny.gap(tiny.saved(tmp_path / "cut", step=STEPS), whole) == 0
    assert (
        tiny.gap(
            dict(method.prototypes.state_dict(prefix="prototypes.")),
            {name: value for name, value in whole.items() if name.startswith("prototypes.")},
        )
        == 0
    )
    assert whole["prototypes.seen"].tolist() == [[True, True, True], [True, True, False]]
    assert tiny.log_of(tmp_path / "cut") == tiny.log_of(tmp_path / "whole")


def test_a_run_logs_partners_and_figures_of_its_health(tmp_path):
    result = run(tmp_path, cross_domain())
    last = result.history[-1]
    assert last.keys() >= {"loss", "partners", "probe_top1", "spread", "uniformity"}
    assert "effective_rank" not in last  # few classes that are points would look ill by it
    assert last["partners"] == pytest.approx(4 / 6)  # class c is in one domain only, and has two of six images
    assert isinstance(cross_domain(), Method)
    assert cross_domain().negatives(256) is None


# What prototypes are for


def apart(*, with_prototypes: bool) -> tuple[float, float]:
    """Mean cosine of a class's means in the two domains, and that of different classes'.

    Classes look different in each domain, and no batch holds a class in both: rows of classes 0 and 1 are of one domain
    and those of 2 and 3 of the other, in turns.
    """
    torch.manual_seed(0)
    looks = random(2, 4, 12)
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh())
    net.feature_dim = 16
    means = Prototypes(2, 4, 4, decay=0.5) if with_prototypes else None
    loss = CrossDomainLoss(temperature=TAU)
    method = CrossDomain(net, nn.Linear(16, 4), SimCLRAugment(8), loss, prototypes=means).double()
    optimizer = torch.optim.SGD(method.parameters(), 0.3, momentum=0.9)
    labels = torch.arange(16) % 4
    for step in range(80):
        domains = (labels // 2 + step) % 2
        views = looks[domains, labels].repeat(2, 1) + 0.3 * random(32, 12, seed=step)
        value, metrics = method.loss(method(views), torch.stack([labels, domains], 1))
        assert metrics["partners"] == 0
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    z = nn.functional.normalize(method.projector(net(looks)), dim=2).detach()
    cosines = z[0] @ z[1].T
    return cosines.diagonal().mean().item(), cosines[~torch.eye(4).bool()].mean().item()


def test_prototypes_bring_a_class_together_that_no_batch_holds_in_both_domains():
    alike, others = apart(with_prototypes=True)
    assert alike > 0.7
    assert others < 0
    assert apart(with_prototypes=False)[0] < alike - 0.3
