"""k nearest neighbours, against loops in float64; and the checks that all judges of features share."""

import math
import re

import numpy as np
import pytest
import torch
from cl_train import _knn as knn
from cl_train import few_label_eval, knn_eval, linear_probe, load_digits, logistic_eval
from sklearn.neighbors import KNeighborsClassifier


def pixels(part: int, n=None) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()[part]
    return data.images.flatten(1).float()[:n], data.labels[:n]


def slow_knn(train_x, train_y, test_x, test_y, *, k, temperature) -> tuple[float, float]:
    """Wu et al., section 3.4, row by row in float64."""
    train_x, test_x = train_x.numpy().astype(np.float64), test_x.numpy().astype(np.float64)
    train_x = train_x / np.sqrt((train_x**2).sum(1, keepdims=True))
    first = fifth = 0
    for row, label in zip(test_x, test_y.tolist(), strict=True):
        cosine = train_x @ (row / math.sqrt((row**2).sum()))
        votes = {}
        for neighbour in np.argsort(-cosine, kind="stable")[:k]:
            c = int(train_y[neighbour])
            votes[c] = votes.get(c, 0.0) + math.exp(cosine[neighbour] / temperature)
        ranked = sorted(votes, key=votes.get, reverse=True)
        first += ranked[0] == label
        fifth += label in ranked[:5]
    return first / len(test_y), fifth / len(test_y)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.1), (200, 0.1), (200, 0.07), (200, 1.0)])
def test_knn_equals_the_slow_one_on_the_pixels_of_digits(k, temperature):
    arguments = (*pixels(0), *pixels(1, 200))
    top1, _ = slow_knn(*arguments, k=k, temperature=temperature)
    assert knn_eval(*arguments, k=k, temperature=temperature).top1 == top1


@pytest.mark.parametrize(("k", "temperature"), [(5, 0.1), (200, 0.07)])
def test_knn_equals_sklearns_neighbours_with_these_weights(k, temperature):
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    peer.fit(train_x.double().numpy(), train_y.numpy())
    votes = peer.predict_proba(test_x.double().numpy())
    found = knn_eval(train_x, train_y, test_x, test_y, k=k, temperature=temperature)
    assert found.top1 == (votes.argmax(1) == test_y.numpy()).mean()


def test_top5_equals_the_slow_one_where_all_classes_have_votes():
    train_x, train_y = pixels(0, 60)  # k = n: every class has votes, so no tie is left to chance
    test_x, test_y = pixels(1)
    _, top5 = slow_knn(train_x, train_y, test_x, test_y, k=60, temperature=0.5)
    found = knn_eval(train_x, train_y, test_x, test_y, k=60, temperature=0.5)
    assert found.top1 < found.top5 == top5 < 1


def test_more_test_rows_than_fit_at_once_give_the_slow_result():
    (train_x, train_y), (test_x, test_y) = pixels(1), pixels(0)
    assert len(test_x) > knn._ROWS
    top1, _ = slow_knn(train_x, train_y, test_x, test_y, k=10, temperature=0.1)
    assert knn_eval(train_x, train_y, test_x, test_y, k=10).top1 == top1


def test_the_number_of_rows_at_a_time_changes_nothing(monkeypatch):
    arguments = (*pixels(0, 300), *pixels(1, 100))
    whole = knn_eval(*arguments)
    monkeypatch.setattr(knn, "_ROWS", 7)
    assert knn_eval(*arguments) == whole


def test_a_small_temperature_is_the_nearest_neighbour():
    arguments = (*pixels(0), *pixels(1))
    assert knn_eval(*arguments, k=200, temperature=1e-4).top1 == knn_eval(*arguments, k=1).top1


def test_a_small_temperature_does_not_overflow():
    assert math.log(torch.finfo(torch.float32).max) < 1 / 0.01  # exp(cosine / temperature) itself would
    arguments = (*pixels(0), *pixels(1, 200))
    top1, _ = slow_knn(*arguments, k=200, temperature=0.01)
    assert knn_eval(*arguments, k=200, temperature=0.01).top1 == top1


def test_the_scale_of_features_does_not_matter():
    (train_x, train_y), (test_x, test_y) = pixels(0, 200), pixels(1, 100)
    rows = torch.linspace(0.1, 10, 200)[:, None]
    assert knn_eval(train_x * rows, train_y, test_x * 7, test_y) == knn_eval(train_x, train_y, test_x, test_y)


def test_more_neighbours_than_rows_are_all_rows():
    arguments = (*pixels(0, 50), *pixels(1, 50))
    assert knn_eval(*arguments, k=1000) == knn_eval(*arguments, k=50)


def test_with_five_classes_or_fewer_top5_is_one():
    x, y = torch.eye(4), torch.arange(4)
    assert knn_eval(x, y, x.flip(0), y, k=1).top5 == 1


def test_votes_are_weighed_by_nearness():
    train_x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])  # cosines 1, 0.6, 0.6 to the test row
    test_x, test_y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    labels = torch.tensor([0, 1, 1])  # one near against two far: exp(1/t) > 2 exp(0.6/t) below t = 0.4 / log 2
    assert knn_eval(train_x, labels, test_x, test_y, temperature=0.5).top1 == 1
    assert knn_eval(train_x, labels, test_x, test_y, temperature=0.7).top1 == 0


# What is refused


def refused(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def blobs() -> dict[str, torch.Tensor]:
    x, y = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    return {"train_x": x, "train_y": y, "test_x": x.clone(), "test_y": y.clone()}


def judge_by_few(train_x, train_y, test_x, test_y):
    return few_label_eval(train_x, train_y, test_x, test_y, labels=1, draws=1)


@pytest.mark.parametrize("judge", [knn_eval, linear_probe, logistic_eval, judge_by_few])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_x": torch.zeros(6, 3, 1)},
            "`train_x` and `train_y` must have shapes (n, d) and (n,) with n >= 1, got (6, 3, 1) and (6,).",
        ),
        (
            {"test_y": torch.zeros(5, dtype=torch.int64)},
            "`test_x` and `test_y` must have shapes (n, d) and (n,) with n >= 1, got (6, 3) and (5,).",
        ),
        (
            {"test_x": torch.zeros(0, 3), "test_y": torch.zeros(0, dtype=torch.int64)},
            "`test_x` and `test_y` must have shapes (n, d) and (n,) with n >= 1, got (0, 3) and (0,).",
        ),
        ({"train_x": torch.full((6, 3), math.nan)}, "`train_x` must be finite, it holds NaN or infinity."),
        ({"test_x": torch.full((6, 3), math.inf)}, "`test_x` must be finite, it holds NaN or infinity."),
        ({"test_x": torch.zeros(6, 4)}, "`train_x` and `test_x` must be equally wide, got 3 and 4."),
        ({"train_y": torch.zeros(6)}, "`train_y` must hold classes, integers from 0."),
        ({"train_y": torch.arange(6) - 1}, "`train_y` must hold classes, integers from 0."),
        ({"test_y": torch.zeros(6)}, "`test_y` must hold classes, integers from 0."),
        (
            {"train_y": torch.zeros(6, dtype=torch.int64, device="meta")},
            "features and labels must all be on one device, got cpu, meta, cpu, cpu.",
        ),
        ({"test_y": torch.tensor([0, 7, 2, 5, 0, 7])}, "`test_y` holds classes that `train_y` has not: [5, 7]."),
        ({"train_y": torch.full((6,), 2)}, "`train_y` must hold at least two classes, it holds only 2."),
        ({"train_y": None}, "`train_y` must hold the class of each image, got None: the data set has no labels."),
        ({"test_y": None}, "`test_y` must hold the class of each image, got None: the data set has no labels."),
    ],
    ids=[
        "3d",
        "lengths",
        "empty",
        "nan",
        "inf",
        "widths",
        "float labels",
        "negative labels",
        "float labels of the test",
        "devices",
        "unknown classes",
        "one class",
        "no train labels",
        "no test labels",
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(judge, changes, message):
    with refused(message):
        judge(**blobs() | changes)


def test_no_neighbours_are_refused():
    with refused("`k` must be at least 1, got 0."):
        knn_eval(**blobs(), k=0)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with refused(f"`temperature` must be positive, got {temperature}."):
        knn_eval(**blobs(), temperature=temperature)
