"""A linear classifier on an encoder, or on the first layers of its head."""

import re

import pytest
import torch
from cl_models import ProjectionHead
from cl_train import Classifier, lars_groups
from torch import nn


class Flat(nn.Module):
    feature_dim = 12

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.scale * images.flatten(1)


def images(n=4) -> torch.Tensor:
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def refused(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_all_classes_are_equally_likely_at_first():
    assert torch.equal(Classifier(Flat(), 5)(images()), torch.zeros(4, 5))


def test_logits_are_an_affine_map_of_the_features():
    network = Classifier(Flat(), 5)
    nn.init.normal_(network.probe.weight)
    nn.init.normal_(network.probe.bias)
    expected = 2 * images().flatten(1) @ network.probe.weight.T + network.probe.bias
    torch.testing.assert_close(network(images()), expected)


@pytest.mark.parametrize(("until", "width"), [(0, 12), (1, 7), (2, 7), (3, 5)])
def test_the_first_layers_of_the_head_come_before_it(until, width):
    head = ProjectionHead(12, 7, 5, layers=3)
    network = Classifier(Flat(), 4, projector=head, until=until).eval()
    head.eval()
    nn.init.normal_(network.probe.weight)
    assert network.probe.in_features == width
    expected = head(2 * images().flatten(1), until=until) @ network.probe.weight.T
    torch.testing.assert_close(network(images()), expected)


def test_the_layers_of_the_head_are_the_heads_own():
    head = ProjectionHead(12, 7, 5, layers=3)
    network = Classifier(Flat(), 4, projector=head, until=1)
    assert network.head[0].weight is head.layers[0].weight
    assert len(list(network.parameters())) == 1 + 3 + 2  # encoder; weight, scale and shift; the classifier


def test_the_linear_layer_is_in_float32_under_autocast():
    network = Classifier(Flat(), 5)
    nn.init.normal_(network.probe.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(images())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(images()))


def test_lars_neither_decays_nor_adapts_the_linear_layer():
    network = Classifier(Flat(), 5, projector=ProjectionHead(12, 7, 5))
    adapted, plain = lars_groups(network)
    assert [tuple(p.shape) for p in adapted["params"]] == [(7, 12)]
    assert any(p is network.probe.weight for p in plain["params"])


def test_an_encoder_without_a_width_is_refused():
    with refused("`encoder` must have its width as `feature_dim`, as cl_models.as_encoder gives it, got None."):
        Classifier(nn.Flatten(), 2)


def test_one_class_is_refused():
    with refused("`classes` must be at least 2, got 1."):
        Classifier(Flat(), 1)


def test_a_layer_that_the_head_has_not_is_refused():
    with refused("`until` must be from 0 to 2, the number of layers, got 3."):
        Classifier(Flat(), 2, projector=ProjectionHead(12, 7, 5), until=3)


def test_features_of_another_width_than_announced_are_refused():
    with refused("`encoder` must return features of shape (n, 12), as its feature_dim says, got (4, 27)."):
        Classifier(Flat(), 2)(torch.zeros(4, 3, 3, 3))
