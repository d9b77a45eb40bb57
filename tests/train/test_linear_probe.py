"""A linear layer on bare features."""

import math
import re

import pytest
import torch
from cl_train import _linear_probe as probe
from cl_train import linear_probe, load_digits
from cl_train._few_labels import held_out
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from torch.testing import assert_close


def blobs(n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Seven classes around the corners of a simplex, far from each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 7
    return functional.one_hot(labels, 9).float() + 0.1 * torch.randn(n, 9, generator=generator), labels


ONE = {"rates": (2.0,), "decays": (0.0,)}


def pixels(part: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()[part]
    return data.images.flatten(1).float(), data.labels


def test_separable_blobs_are_all_classified():
    found = linear_probe(*blobs(140, seed=0), *blobs(70, seed=1))
    assert (found.top1, found.top5) == (1.0, 1.0)


def test_shuffled_labels_cannot_be_learnt():
    x, y = blobs(140, seed=0)
    random = y[torch.randperm(140, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(x, random, *blobs(70, seed=1), epochs=30).top1 < 0.6


def test_pixels_of_digits_are_worth_about_as_much_as_to_logistic_regression():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    unit = functional.normalize(train_x, dim=1).numpy(), functional.normalize(test_x, dim=1).numpy()
    peer = LogisticRegression(C=100, max_iter=10_000).fit(unit[0], train_y.numpy()).score(unit[1], test_y.numpy())
    assert linear_probe(train_x, train_y, test_x, test_y, epochs=30).top1 == pytest.approx(peer, abs=0.02)


@pytest.mark.parametrize("scale", [1 / 1024, 1024.0])
def test_the_scale_of_features_does_not_matter(scale):
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    plain = linear_probe(train_x, train_y, test_x, test_y, epochs=5)
    assert linear_probe(train_x * scale, train_y, test_x * scale, test_y, epochs=5) == plain


def test_the_layer_is_trained_as_the_paper_says():
    (x, y), (test_x, test_y) = pixels(0), pixels(1)
    found = linear_probe(x[:60], y[:60], test_x, test_y, epochs=3, batch_size=60, **ONE)  # one step an epoch
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
    x, y = torch.zeros(14, 3), torch.arange(7).repeat(2)
    assert linear_probe(x, y, x, y, epochs=2).top1 == pytest.approx(1 / 7)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch_size", -1)])
def test_an_argument_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{name}` must be positive, got {value}.')}$"):
        linear_probe(*blobs(14, seed=0), *blobs(14, seed=1), **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": ()}, "`rates` must be one or more positive numbers, got ()."),
        ({"rates": (0.1, 0.0)}, "`rates` must be one or more positive numbers, got (0.1, 0.0)."),
        ({"decays": ()}, "`decays` must be one or more numbers from 0, got ()."),
        ({"decays": (-1e-6,)}, "`decays` must be one or more numbers from 0, got (-1e-06,)."),
        ({"held_out": 1.0}, "`held_out` must be in (0, 1), got 1.0."),
    ],
)
def test_settings_that_cannot_be_tried_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        linear_probe(*blobs(14, seed=0), *blobs(14, seed=1), **changes)


def test_a_layer_that_diverges_is_refused():
    with pytest.raises(ValueError, match=r"^`rates` and `decays` must be small enough, the layer with "):
        linear_probe(*blobs(14, seed=0), *blobs(14, seed=1), rates=[1e30], decays=[1.0])


def test_a_layer_that_diverges_is_not_chosen():
    found = linear_probe(*blobs(140, seed=0), *blobs(70, seed=1), rates=[0.3, 1e30], decays=[1.0, 0.01], epochs=10)
    assert found.tried[1e30, 1.0] == 0
    assert found.rate == 0.3


# Choosing


def by_torch(x, y, rate, decay, *, epochs, batch_size, seed) -> torch.nn.Linear:
    """The layer by torch's own SGD in float64, one setting at a time."""
    layer = torch.nn.Linear(x.shape[1], 10).double()
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0, momentum=0.9, nesterov=True, weight_decay=decay)
    generator, steps, step = torch.Generator().manual_seed(seed), epochs * math.ceil(len(x) / batch_size), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.param_groups[0]["lr"] = rate * batch_size / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
    return layer


def test_many_layers_at_a_time_are_those_of_torch_one_by_one():
    x, y = (part[:100] for part in pixels(0))
    x = x / x.square().mean().sqrt()
    settings = [(0.1, 0.0), (2.0, 0.0), (2.0, 0.01)]
    weight, bias = probe._train(x, y, 10, settings, 3, 32, 5)
    for number, (rate, decay) in enumerate(settings):
        layer = by_torch(x.double(), y, rate, decay, epochs=3, batch_size=32, seed=5)
        assert_close(weight[:, number].T.double(), layer.weight.data, rtol=1e-4, atol=1e-5)
        assert_close(bias[number].double(), layer.bias.data, rtol=1e-4, atol=1e-5)


def test_what_is_tried_is_the_accuracy_on_the_held_out_rows():
    (x, y), test = pixels(0), pixels(1)
    x, y = x[:300], y[:300]
    how = {"epochs": 3, "batch_size": 64, "seed": 2}
    found = linear_probe(x, y, *test, rates=(0.003, 0.1), decays=(0.0, 0.1), held_out=0.2, **how)
    kept, held = held_out(y, 0.2, seed=2)
    rows = x.double() / x.double().square().mean().sqrt()
    assert set(found.tried) == {(0.003, 0.0), (0.003, 0.1), (0.1, 0.0), (0.1, 0.1)}
    for (rate, decay), top1 in found.tried.items():
        layer = by_torch(rows[kept], y[kept], rate, decay, **how)
        expected = (layer(rows[held]).argmax(1) == y[held]).double().mean().item()
        assert top1 == pytest.approx(expected, abs=1.01 / len(held))  # float32 may turn over one row
    assert found.tried[found.rate, found.decay] == max(found.tried.values())


def test_the_chosen_layer_is_trained_again_on_all_rows():
    arguments, how = (*pixels(0), *pixels(1)), {"epochs": 2, "seed": 4}
    found = linear_probe(*arguments, rates=(0.001, 0.1), decays=(0.0, 0.1), **how)
    alone = linear_probe(*arguments, rates=(found.rate,), decays=(found.decay,), **how)
    assert alone.tried == {}
    assert vars(alone) | {"tried": found.tried} == vars(found)


def test_of_equals_the_smaller_rate_and_then_the_stronger_decay_is_taken():
    found = linear_probe(*blobs(140, seed=0), *blobs(70, seed=1), rates=(1.0, 0.3), decays=(0.0, 1e-4), epochs=30)
    assert set(found.tried.values()) == {1.0}
    assert (found.rate, found.decay) == (0.3, 1e-4)


def test_nothing_is_chosen_by_the_test_set():
    (train_x, train_y), (test_x, test_y) = pixels(0), pixels(1)
    how = {"rates": (0.01, 0.1, 1.0), "decays": (0.0,), "epochs": 2}
    found = linear_probe(train_x, train_y, test_x, test_y, **how)
    other = linear_probe(train_x, train_y, test_x.flip(0), test_y, **how)
    assert found.top1 > 0.8 > 0.3 > other.top1
    assert (found.rate, found.tried) == (other.rate, other.tried)
