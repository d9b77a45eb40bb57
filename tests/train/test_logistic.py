"""Logistic regression against scikit-learn's, and what few labels are worth."""

import re

import numpy as np
import pytest
import torch
from cl_train import _logistic as logistic
from cl_train import few_label_eval, load_digits
from cl_train._few_labels import few_labels
from cl_train._logistic import fit_logistic, logistic_path
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from torch.testing import assert_close


def pixels(part: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()[part]
    return data.images.flatten(1).float(), data.labels


def unit(part: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = pixels(part)
    return functional.normalize(x.double(), dim=1), y


def refused(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# The solver


@pytest.fixture(scope="module", params=[1e-5, 1e-2, 1.0, 100.0])
def both(request) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the test digits by scikit-learn's solver and by ours."""
    (train_x, train_y), (test_x, _) = unit(0), unit(1)
    # not its lbfgs, which is itself 2e-6 away from the solution
    peer = LogisticRegression(C=request.param, tol=1e-10, max_iter=10_000, solver="newton-cg")
    peer.fit(train_x.numpy(), train_y.numpy())
    weight, bias = fit_logistic(train_x, train_y, classes=10, penalty=1 / request.param)
    return torch.from_numpy(peer.predict_proba(test_x.numpy())), (test_x @ weight.T + bias).softmax(1)


def test_probabilities_are_those_of_sklearn(both):
    assert_close(both[1], both[0], rtol=0, atol=1e-6)


def test_predictions_are_those_of_sklearn(both):
    assert torch.equal(both[1].argmax(1), both[0].argmax(1))


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_strength_of_the_penalty_is_that_of_sklearn(strength):
    x, y = (part[:100] for part in unit(0))
    peer = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
    weight, _ = fit_logistic(x, y, classes=10, penalty=1 / strength)
    assert_close(weight, torch.from_numpy(peer.coef_), rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_objective_vanishes_at_the_solution():
    x, y = (part[:200] for part in unit(0))
    weight, bias = fit_logistic(x, y, classes=10, penalty=0.1)
    rest = (x @ weight.T + bias).softmax(1) - functional.one_hot(y, 10)
    assert (weight + 10.0 * rest.T @ x).abs().max() < 1e-5
    assert (10.0 * rest.sum(0)).abs().max() < 1e-5


def test_a_class_without_images_is_never_chosen():
    x, y = torch.eye(4).repeat(3, 1), torch.tensor([0, 1, 3, 4]).repeat(3)
    weight, bias = fit_logistic(x, y, classes=5, penalty=0.1)
    scores = x.double() @ weight.T + bias
    assert torch.equal(scores.argmin(1), torch.full((12,), 2))
    assert torch.equal(scores.argmax(1), y)


def test_the_solution_is_found_where_gradients_are_off():
    x, y = torch.eye(3), torch.arange(3)
    with torch.no_grad():
        weight, bias = fit_logistic(x, y, classes=3, penalty=1.0)
    assert torch.equal((x.double() @ weight.T + bias).argmax(1), y)
    assert not weight.requires_grad


def path(x, y, penalties):
    return list(logistic_path(x, y, classes=10, penalties=penalties))


def test_a_path_predicts_what_the_exact_solutions_predict():
    (x, y), (test_x, _) = unit(0), unit(1)
    penalties = [100.0, 1.0, 0.01]
    for penalty, (weight, bias) in zip(penalties, path(x, y, penalties), strict=True):
        exact_weight, exact_bias = fit_logistic(x, y, classes=10, penalty=penalty)
        ours, exact = test_x @ weight.T + bias, test_x @ exact_weight.T + exact_bias
        assert (ours.argmax(1) == exact.argmax(1)).double().mean() >= 0.998
        assert_close(ours.softmax(1), exact.softmax(1), rtol=0, atol=0.02)


def test_the_beginning_does_not_matter():
    x, y = (part[:200] for part in unit(0))
    begun = fit_logistic(x, y, classes=10, penalty=0.1, start=path(x, y, [1.0])[0])
    for found, expected in zip(begun, fit_logistic(x, y, classes=10, penalty=0.1), strict=True):
        assert_close(found, expected, rtol=0, atol=1e-5)


def test_features_far_from_the_origin_are_solved_too():
    x, y = (part[:200] for part in unit(0))
    weight, _ = fit_logistic(x + 1000, y, classes=10, penalty=0.1)
    assert_close(weight, fit_logistic(x, y, classes=10, penalty=0.1)[0], rtol=0, atol=1e-5)


def test_what_has_not_converged_is_said(monkeypatch):
    monkeypatch.setattr(logistic, "_ROUNDS", 1)
    monkeypatch.setattr(logistic, "_ITERATIONS", 2)
    x, y = (part[:50] for part in unit(0))
    with pytest.warns(RuntimeWarning, match="^logistic regression with penalty 0.01 has not converged: slope"):
        fit_logistic(x, y, classes=10, penalty=0.01)


# Few labels


@pytest.mark.parametrize(("labels", "top1"), [(1, 0.667), (5, 0.869), (None, 0.978)])
def test_pixels_of_digits_are_worth_what_sklearn_says_of_the_same_draws(labels, top1):
    found = few_label_eval(*pixels(0), *pixels(1), labels=labels)
    assert found.top1 == pytest.approx(top1, abs=0.005)


def test_a_draw_is_numpys_choice_class_by_class():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    found = few_label_eval(train_x, train_y, test_x, test_y, labels=2, draws=3).draws[2]
    random = np.random.default_rng(2)
    chosen = np.concatenate([random.choice(np.flatnonzero(train_y.numpy() == c), 2, replace=False) for c in range(10)])
    x, tests = unit(0)[0][chosen], unit(1)[0]
    peer = LogisticRegression(C=100, tol=1e-10, max_iter=10_000).fit(x.numpy(), train_y[chosen].numpy())
    assert found.top1 == pytest.approx(peer.score(tests.numpy(), test_y.numpy()), abs=1e-9)


def test_the_means_are_those_of_the_draws():
    found = few_label_eval(*pixels(0), *pixels(1), labels=1, draws=4)
    assert len(found.draws) == 4
    assert found.top1 == pytest.approx(sum(draw.top1 for draw in found.draws) / 4)
    assert found.top5 == pytest.approx(sum(draw.top5 for draw in found.draws) / 4)
    assert found.top1 < found.top5 < 1


def test_draws_differ():
    found = few_label_eval(*pixels(0), *pixels(1), labels=1, draws=4)
    assert len({draw.top1 for draw in found.draws}) > 1


def test_draws_do_not_depend_on_global_random_numbers():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(few_label_eval(*pixels(0), *pixels(1), labels=1, draws=2))
    assert results[0] == results[1]


def test_more_draws_begin_with_the_same_ones():
    two = few_label_eval(*pixels(0), *pixels(1), labels=1, draws=2)
    three = few_label_eval(*pixels(0), *pixels(1), labels=1, draws=3)
    assert three.draws[:2] == two.draws


def test_all_labels_are_one_draw():
    x, y = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    assert len(few_label_eval(x, y, x, y, labels=None).draws) == 1


def test_normalised_features_have_no_scale():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    first = few_label_eval(train_x, train_y, test_x, test_y, labels=1, draws=2)
    second = few_label_eval(train_x / 255, train_y, test_x * 3, test_y, labels=1, draws=2)
    assert second.top1 == pytest.approx(first.top1, abs=0.003)


def test_features_can_be_left_as_they_are():
    x = torch.tensor([[1.0, 0.0], [10.0, 0.0]])  # classes that differ in length only
    y = torch.tensor([0, 1])
    assert few_label_eval(x, y, x, y, labels=1, draws=1, normalize=False).top1 == 1
    assert few_label_eval(x, y, x, y, labels=1, draws=1).top1 == 0.5


def test_a_share_of_the_labels_is_that_of_few_labels():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    shares = few_label_eval(train_x, train_y, test_x, test_y, labels=0.02, draws=2).draws
    rows = few_labels(train_y, 0.02, seed=1)
    assert few_label_eval(train_x, train_y, test_x, test_y, labels=rows).draws == [shares[1]]


def test_rows_can_be_named():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    named = few_label_eval(train_x, train_y, test_x, test_y, labels=torch.arange(80, 120))
    rows = slice(80, 120)
    assert named.draws == few_label_eval(train_x[rows], train_y[rows], test_x, test_y, labels=None).draws


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1]], "`labels` must be numbers of rows, integers of shape (k,), none of them twice."),
        ([0.0, 1.0], "`labels` must be numbers of rows, integers of shape (k,), none of them twice."),
        ([True, False], "`labels` must be numbers of rows, integers of shape (k,), none of them twice."),
        ([0, 1, 1], "`labels` must be numbers of rows, integers of shape (k,), none of them twice."),
        ([0, 5], "`labels` must be numbers of rows, one or more from 0 to 4."),
        ([-1, 2], "`labels` must be numbers of rows, one or more from 0 to 4."),
        ([1, 3], "`labels` must be rows of at least two classes, all are of 1."),
    ],
)
def test_rows_that_cannot_be_taken_are_refused(labels, message):
    x, y = torch.eye(5), torch.tensor([0, 1, 0, 1, 0])
    with refused(message):
        few_label_eval(x, y, x, y, labels=torch.tensor(labels))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("draws", 0),
        ("C", 0.0),
        ("C", -1.0),
    ],
)
def test_an_argument_that_is_not_positive_is_refused(name, value):
    x, y = torch.eye(3), torch.arange(3)
    arguments = {"labels": 1, "draws": 1} | {name: value}
    with refused(f"`{name}` must be positive, got {value}."):
        few_label_eval(x, y, x, y, **arguments)
