"""What carries over to another domain: against scikit-learn, and loops; and whether domains are told apart."""

import re

import numpy as np
import pytest
import torch
from cl_train import InputError, Scores, TransferScores, load_digits, transfer_eval
from cl_train import _transfer as transfer
from sklearn.linear_model import LogisticRegression
from torch import Tensor


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits, and 300 others in another light, in which they are harder to tell."""
    train, test = load_digits()
    bright = 0.5 * test.images[:300].flatten(1).float() + 100 * torch.rand(300, 64, generator=seeded(0))
    return train.images[:400].flatten(1).float(), train.labels[:400], bright, test.labels[:300]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gauss(n: int, width: int = 8, *, seed: int, at: float = 0.0) -> Tensor:
    return torch.randn(n, width, generator=seeded(seed)) + at * torch.eye(width)[0]


def halves(n: int) -> Tensor:
    return torch.arange(n) % 2


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_the_accuracy_is_that_of_sklearn_on_unit_rows(strength):
    x, y, test_x, test_y = digits()
    rows, test_rows = (part.double() / part.double().norm(dim=1, keepdim=True) for part in (x, test_x))
    peer = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000, solver="newton-cg").fit(rows.numpy(), y.numpy())
    expected = peer.score(test_rows.numpy(), test_y.numpy())
    found = transfer_eval(x, y, test_x, test_y, C=strength)
    assert 0.15 < expected < 0.9
    assert found.top1 == pytest.approx(expected, abs=1e-12)
    ranked = np.argsort(-peer.decision_function(test_rows.numpy()), axis=1)[:, :5]
    assert found.top5 == pytest.approx((ranked == test_y.numpy()[:, None]).any(1).mean(), abs=1e-12)


def test_the_penalty_makes_a_difference():
    x, y, test_x, test_y = digits()
    assert transfer_eval(x, y, test_x, test_y, C=1e-3).top1 != transfer_eval(x, y, test_x, test_y, C=30.0).top1


def test_scores_are_scores():
    found = transfer_eval(*digits())
    assert isinstance(found, TransferScores)
    assert isinstance(found, Scores)
    assert found.images == 300
    assert found.interval[0] < found.top1 < found.interval[1]


@pytest.mark.parametrize("rows", [1024, 7])
def test_retrieval_is_that_of_a_double_loop(monkeypatch, rows):
    monkeypatch.setattr(transfer, "_ROWS", rows)
    x, y, test_x, test_y = gauss(40, seed=0), torch.arange(40) % 3, gauss(25, seed=1), torch.arange(25) % 3
    hits = 0
    for row, label in zip(test_x.double(), test_y.tolist(), strict=True):
        best, nearest = -2.0, -1
        for other, own in zip(x.double(), y.tolist(), strict=True):
            cosine = (row @ other / row.norm() / other.norm()).item()
            if cosine > best:
                best, nearest = cosine, own
        hits += nearest == label
    assert 0 < hits < 25
    assert transfer_eval(x, y, test_x, test_y).retrieval == pytest.approx(hits / 25, abs=1e-12)


def test_the_length_of_rows_is_irrelevant():
    x, y, test_x, test_y = digits()
    found = transfer_eval(x * 2.0 ** (y[:, None] - 4), y, test_x / 8, test_y)
    assert found == transfer_eval(x, y, test_x, test_y)


def test_target_labels_are_for_counting_only():
    """Where they are renamed, what the probes have learnt stays: a permutation of all ten, none right."""
    x, y, test_x, test_y = digits()
    found, wrong = transfer_eval(x, y, test_x, test_y), transfer_eval(x, y, test_x, (test_y + 1) % 10)
    assert wrong.domain_top1 == found.domain_top1
    hits = [transfer_eval(x, y, test_x, (test_y + k) % 10).top1 for k in range(10)]
    assert sum(hits) == pytest.approx(1)


def test_two_samples_of_one_distribution_are_not_told_apart():
    found = [
        transfer_eval(gauss(400, seed=s), halves(400), gauss(400, seed=100 + s), halves(400)).domain_top1
        for s in range(5)
    ]
    assert sum(found) / 5 == pytest.approx(0.5, abs=0.03)
    assert all(abs(value - 0.5) < 0.1 for value in found)


def test_separated_domains_are_told_apart_always():
    x, test_x = gauss(60, seed=0, at=20.0), gauss(50, seed=1, at=-20.0)
    assert transfer_eval(x, halves(60), test_x, halves(50)).domain_top1 == 1


def test_domains_of_unequal_size_weigh_the_same():
    """Half of the source's rows are the target's one point: half of them and all of the target are named rightly."""
    point = torch.eye(8)[:1]
    source, target = torch.cat([point, -point]).repeat(500, 1), point.repeat(100, 1)
    found = transfer_eval(source, halves(1000), target, halves(100)).domain_top1
    assert found == pytest.approx(0.75, abs=0.01)  # of all rows together 0.52


def test_the_domain_probe_is_that_of_sklearn_on_the_same_halves():
    x, test_x = gauss(90, seed=0, at=0.4), gauss(41, seed=1)
    source, target = (rows / rows.norm(dim=1, keepdim=True) for rows in (x, test_x))
    generator = seeded(3)
    orders = [torch.randperm(n, generator=generator) for n in (90, 41)]
    fitted = torch.cat([source[orders[0][:20]], target[orders[1][:20]]])
    peer = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(fitted.numpy(), [0] * 20 + [1] * 20)
    shares = [
        peer.score(rows[order[20:]].numpy(), [domain] * (len(rows) - 20))
        for domain, (rows, order) in enumerate(zip((source, target), orders, strict=True))
    ]
    found = transfer_eval(x, halves(90), test_x, halves(41), C=2.0, seed=3)
    assert shares[0] != shares[1]
    assert found.domain_top1 == pytest.approx(sum(shares) / 2, abs=1e-9)


def test_the_seed_draws_other_halves_and_nothing_else():
    x, test_x = gauss(60, seed=0, at=0.5), gauss(60, seed=1)
    results = [transfer_eval(x, halves(60), test_x, halves(60), seed=seed) for seed in range(6)]
    assert len({found.domain_top1 for found in results}) > 1
    assert len({(found.top1, found.retrieval) for found in results}) == 1
    torch.manual_seed(7)
    assert transfer_eval(x, halves(60), test_x, halves(60), seed=0) == results[0]


X, Y = torch.eye(4), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"C": 0.0}, "`C` must be positive, got 0.0."),
        ({"C": float("nan")}, "`C` must be positive, got nan."),
        ({"target_x": X[:1], "target_y": Y[:1]}, "`target_x` must have at least 2 rows, got 1."),
        (
            {"source_y": torch.zeros(4, dtype=torch.int64)},
            "`source_y` must hold at least two classes, it holds only 0.",
        ),
        ({"target_y": Y + 1}, "`target_y` holds classes that `source_y` has not: [2]."),
        ({"target_y": Y - 1}, "`target_y` must hold classes, integers from 0."),
        ({"source_y": Y.float()}, "`source_y` must hold classes, integers from 0."),
        ({"source_y": None}, "`source_y` must hold the class of each image, got None: the data set has no labels."),
        ({"target_x": X[:, :3]}, "`source_x` and `target_x` must be equally wide, got 4 and 3."),
        ({"target_x": X * torch.nan}, "`target_x` must be finite, it holds NaN or infinity."),
        (
            {"source_y": Y[:3]},
            "`source_x` and `source_y` must have shapes (n, d) and (n,) with n >= 1, got (4, 4) and (3,).",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"source_x": X, "source_y": Y, "target_x": X, "target_y": Y} | changes
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        transfer_eval(**arguments)
