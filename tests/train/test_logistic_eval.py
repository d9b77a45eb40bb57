"""The transfer protocol, against scikit-learn."""

import math
import re

import pytest
import torch
from cl_train import _logistic_eval as module
from cl_train import load_digits, logistic_eval
from cl_train._few_labels import held_out
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

PENALTIES = (0.01, 1.0, 1000.0, 1e5)


def pixels(part: int, n=None) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()[part]
    return data.images.flatten(1).float()[:n] / 255, data.labels[:n]


def peer(x, y, penalty) -> LogisticRegression:
    # not its lbfgs, which ends early
    solver = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000, solver="newton-cg")
    return solver.fit(x.double().numpy(), y.numpy())


def test_45_penalties_from_a_millionth_to_a_hundred_thousand():
    assert len(module._PENALTIES) == 45
    assert module._PENALTIES[0] == 1e5
    assert module._PENALTIES[-1] == pytest.approx(1e-6)
    steps = [math.log10(a / b) for a, b in zip(module._PENALTIES, module._PENALTIES[1:], strict=False)]
    assert steps == pytest.approx([0.25] * 44)


def test_what_is_tried_is_sklearns_accuracy_on_the_held_out_rows():
    (x, y), test = pixels(0, 300), pixels(1)
    found = logistic_eval(x, y, *test, penalties=PENALTIES, held_out=0.3, seed=2)
    kept, held = held_out(y, 0.3, seed=2)
    for penalty in PENALTIES:
        expected = peer(x[kept], y[kept], penalty).score(x[held].double().numpy(), y[held].numpy())
        assert found.tried[penalty] == pytest.approx(expected, abs=1.01 / len(held))  # the path is rough: one row
    assert len(set(found.tried.values())) > 2
    assert found.tried[found.penalty] == max(found.tried.values())


def test_the_chosen_one_is_sklearns_on_all_rows():
    (x, y), (test_x, test_y) = pixels(0, 300), pixels(1)
    found = logistic_eval(x, y, test_x, test_y, penalties=PENALTIES)
    assert found.top1 == peer(x, y, found.penalty).score(test_x.double().numpy(), test_y.numpy())


def test_validation_features_choose_and_then_join_the_training():
    (x, y), (test_x, test_y) = pixels(0, 400), pixels(1)
    found = logistic_eval(x[:200], y[:200], test_x, test_y, val_x=x[200:], val_y=y[200:], penalties=PENALTIES)
    for penalty in PENALTIES:
        expected = peer(x[:200], y[:200], penalty).score(x[200:].double().numpy(), y[200:].numpy())
        assert found.tried[penalty] == pytest.approx(expected, abs=1.01 / 200)
    assert found.top1 == peer(x, y, found.penalty).score(test_x.double().numpy(), test_y.numpy())


def test_one_penalty_is_taken_as_it_is():
    (x, y), (test_x, test_y) = pixels(0, 300), pixels(1)
    found = logistic_eval(x, y, test_x, test_y, penalties=[3.0])
    assert (found.penalty, found.tried) == (3.0, {})
    assert found.top1 == peer(x, y, 3.0).score(test_x.double().numpy(), test_y.numpy())


def test_of_equals_the_strongest_penalty_is_taken():
    x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    found = logistic_eval(x, y, x, y, penalties=[0.1, 10.0, 1.0])
    assert list(found.tried.values()) == [1.0] * 3
    assert found.penalty == 10


def test_features_can_be_scaled_to_unit_length():
    (x, y), (test_x, test_y) = pixels(0, 300), pixels(1)
    lengths = torch.linspace(0.1, 10, 300)[:, None]
    found = logistic_eval(x * lengths, y, test_x * 7, test_y, penalties=[0.1], normalize=True)
    unit = functional.normalize(x, dim=1), functional.normalize(test_x, dim=1)
    assert found.top1 == peer(unit[0], y, 0.1).score(unit[1].double().numpy(), test_y.numpy())


def test_nothing_is_chosen_by_the_test_set():
    (x, y), (test_x, test_y) = pixels(0, 300), pixels(1)
    found = logistic_eval(x, y, test_x, test_y, penalties=PENALTIES)
    other = logistic_eval(x, y, test_x.flip(0), test_y, penalties=PENALTIES)
    assert other.top1 < 0.3
    assert (found.penalty, found.tried) == (other.penalty, other.tried)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalties": ()}, "`penalties` must be one or more positive numbers, got ()."),
        ({"penalties": (1.0, 0.0)}, "`penalties` must be one or more positive numbers, got (1.0, 0.0)."),
        ({"held_out": 0.0}, "`held_out` must be in (0, 1), got 0.0."),
        ({"val_x": torch.eye(3)}, "`val_x` and `val_y` must be given together."),
        (
            {"val_x": torch.zeros(2, 4), "val_y": torch.arange(2)},
            "`train_x` and `val_x` must be equally wide, got 3 and 4.",
        ),
        (
            {"val_x": torch.eye(3), "val_y": torch.arange(3) + 1},
            "`val_y` holds classes that `train_y` has not: [3].",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    x, y = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        logistic_eval(x, y, x, y, **changes)
