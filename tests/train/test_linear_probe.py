"""A linear layer on bare features."""

import math
import re

import pytest
import torch
from cl_train import linear_probe, load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional


def blobs(n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Seven classes around the corners of a simplex, far from each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 7
    return functional.one_hot(labels, 9).float() + 0.1 * torch.randn(n, 9, generator=generator), labels


def pixels(part: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()[part]
    return data.images.flatten(1).float(), data.labels


def test_separable_blobs_are_all_classified():
    found = linear_probe(*blobs(140, seed=0), *blobs(70, seed=1))
    assert (found.top1, found.top5) == (1.0, 1.0)


def test_shuffled_labels_cannot_be_learnt():
    x, y = blobs(140, seed=0)
    random = y[torch.randperm(140, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(x, random, *blobs(70, seed=1)).top1 < 0.6


def test_pixels_of_digits_are_worth_about_as_much_as_to_logistic_regression():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    unit = functional.normalize(train_x, dim=1).numpy(), functional.normalize(test_x, dim=1).numpy()
    peer = LogisticRegression(C=100, max_iter=10_000).fit(unit[0], train_y.numpy()).score(unit[1], test_y.numpy())
    assert linear_probe(train_x, train_y, test_x, test_y).top1 == pytest.approx(peer, abs=0.02)


@pytest.mark.parametrize("scale", [1 / 1024, 1024.0])
def test_the_scale_of_features_does_not_matter(scale):
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    plain = linear_probe(train_x, train_y, test_x, test_y, epochs=5)
    assert linear_probe(train_x * scale, train_y, test_x * scale, test_y, epochs=5) == plain


def test_the_layer_is_trained_as_the_paper_says():
    (x, y), (test_x, test_y) = pixels(0), pixels(1)
    found = linear_probe(x[:60], y[:60], test_x, test_y, epochs=3, batch_size=60, base_lr=2.0)  # one step an epoch
    scale = math.sqrt(sum(v * v for v in x[:60].flatten().double().tolist()) / x[:60].numel())
    rows, w, b = x[:60].double() / scale, torch.zeros(10, 64).double(), torch.zeros(10).double()
    v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(3):
        lr = 2.0 * 60 / 256 * 0.5 * (1 + math.cos(math.pi * step / 3))
        rest = ((rows @ w.T + b).softmax(1) - functional.one_hot(y[:60], 10)) / 60
        g_w, g_b = rest.T @ rows, rest.sum(0)
        v_w, v_b = 0.9 * v_w + g_w, 0.9 * v_b + g_b
        w, b = w - lr * (g_w + 0.9 * v_w), b - lr * (g_b + 0.9 * v_b)  # Nesterov
    expected = ((test_x.double() / scale @ w.T + b).argmax(1) == test_y).float().mean().item()
    assert found.top1 == pytest.approx(expected, abs=1e-6)
    assert 0.3 < expected < 0.9


def test_the_result_is_a_function_of_the_seed_alone():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(linear_probe(*pixels(0), *pixels(1), epochs=2, seed=3))
    assert results[0] == results[1]


def test_the_probe_can_be_trained_where_gradients_are_off():
    with torch.no_grad():
        assert linear_probe(*blobs(140, seed=0), *blobs(70, seed=1)).top1 == 1


def test_fewer_rows_than_a_batch_are_one_batch():
    arguments = (*blobs(70, seed=0), *blobs(70, seed=1))
    assert linear_probe(*arguments, batch_size=10_000) == linear_probe(*arguments, batch_size=70)


def test_features_that_are_all_zero_are_no_error():
    x, y = torch.zeros(7, 3), torch.arange(7)
    assert linear_probe(x, y, x, y, epochs=2).top1 == pytest.approx(1 / 7)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch_size", -1), ("base_lr", 0.0)])
def test_an_argument_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{name}` must be positive, got {value}.')}$"):
        linear_probe(*blobs(14, seed=0), *blobs(14, seed=1), **{name: value})
