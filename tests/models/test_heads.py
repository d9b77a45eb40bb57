"""The projection head: the authors' layers, counted and one by one."""

import itertools
import re

import pytest
import torch
from cl_models import BYOLHead, ProjectionHead
from torch import Tensor, nn
from torch.testing import assert_close


def features(n: int = 16, d: int = 6, *, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def head(*sizes: int, layers: int = 2) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(*sizes, layers=layers)


def normalised(x: Tensor) -> Tensor:
    """BatchNorm in training, before scale and shift."""
    return (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)


@pytest.mark.parametrize(
    ("in_dim", "layers", "count"), [(512, 2, 328_832), (512, 3, 592_000), (2048, 2, 4_460_672), (2048, 3, 8_659_072)]
)
def test_head_has_as_many_parameters_as_the_authors(in_dim, layers, count):
    with torch.device("meta"):
        module = ProjectionHead(in_dim, in_dim, 128, layers=layers)
    assert sum(p.numel() for p in module.parameters()) == count


def test_head_is_linear_norm_relu_linear_norm():
    module = head(6, 5, 4)
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.weight.copy_(torch.rand(norm.weight.shape) + 0.5)
            if norm.bias is not None:
                norm.bias.copy_(torch.rand(norm.bias.shape) - 0.5)
    w_1, gamma_1, beta_1, w_2, gamma_2 = module.parameters()
    hidden = torch.relu(gamma_1 * normalised(features() @ w_1.T) + beta_1)
    assert_close(module(features()), gamma_2 * normalised(hidden @ w_2.T), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_head_has_as_many_linear_layers_as_asked(layers):
    linear = [m for m in head(6, 5, 4, layers=layers).modules() if isinstance(m, nn.Linear)]
    sizes = [6, *[5] * (layers - 1), 4]
    assert [(m.in_features, m.out_features) for m in linear] == list(itertools.pairwise(sizes))


def test_head_of_one_layer_is_linear_but_for_the_norm():
    module = head(6, 5, 4, layers=1)
    weight, gamma = module.parameters()
    assert_close(module(features()), gamma * normalised(features() @ weight.T))


def test_head_has_no_bias_in_its_linear_layers():
    assert all(m.bias is None for m in head(6, 5, 4, layers=3).modules() if isinstance(m, nn.Linear))


def test_head_shifts_in_every_norm_but_the_last():
    norms = [m for m in head(6, 5, 4, layers=3).modules() if isinstance(m, nn.BatchNorm1d)]
    assert [m.bias is not None for m in norms] == [True, True, False]
    assert all(m.weight is not None for m in norms)


def test_head_output_of_a_training_batch_has_zero_mean_and_unit_variance():
    out = head(8, 64, 4).double()(1e3 * features(64, 8).double())
    assert_close(out.mean(0), torch.zeros_like(out[0]), rtol=0, atol=1e-12)
    assert_close(out.var(0, unbiased=False), torch.ones_like(out[0]), rtol=0, atol=0.02)  # a little below 1 by eps


def test_head_in_evaluation_uses_its_running_statistics():
    module = head(6, 5, 4)
    for seed in range(200):
        module(features(seed=seed))
    module.eval()
    with torch.no_grad():
        alone, together = module(features()[:1]), module(features())[:1]
    assert_close(alone, together)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_head_weights_start_normal_with_deviation_0_01(layers):
    for m in head(300, 200, 100, layers=layers).modules():
        if isinstance(m, nn.Linear):
            assert m.weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert abs(m.weight.mean().item()) < 3e-4


def test_head_comes_back_from_its_state():
    source, target = head(6, 5, 4), ProjectionHead(6, 5, 4)
    source(features())  # moves the running statistics
    target.load_state_dict(source.state_dict())
    with torch.no_grad():
        assert_close(target.eval()(features()), source.eval()(features()), rtol=0, atol=0)


def test_head_without_layers_returns_the_features():
    module = head(6, 5, 6, layers=0)
    assert module(features()) is not None
    assert_close(module(features()), features(), rtol=0, atol=0)
    assert list(module.parameters()) == []


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_head_stops_after_the_layer_asked_for(layers):
    out_dim = 4 if layers else 6
    module = head(6, 5, out_dim, layers=layers)
    assert module.dims == (6, *[5] * (layers - 1), *[4] * min(layers, 1))
    x = features()
    parts = iter(module.layers)
    for until in range(layers + 1):
        found = module(features(), until=until)
        assert_close(found, x)
        assert found.shape == (16, module.dims[until])
        if until < layers:
            x = next(parts)(x)
            x = next(parts)(x)
        if until < layers - 1:
            x = next(parts)(x)
    assert_close(module(features()), module(features(), until=layers))


def test_head_after_a_hidden_layer_has_passed_its_relu():
    module = head(6, 50, 4, layers=3)
    for until in (1, 2):
        found = module(features(), until=until)
        assert (found >= 0).all()
        assert 0.3 < (found == 0).float().mean() < 0.7


@pytest.mark.parametrize("until", [-1, 3])
def test_head_says_which_layers_there_are(until):
    message = f"`until` must be from 0 to 2, the number of layers, got {until}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        head(6, 5, 4)(features(), until=until)


def test_head_without_layers_cannot_change_the_width():
    message = "`out_dim` must be `in_dim`, 6, where there are no layers, got 4."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ProjectionHead(6, 5, 4, layers=0)


@pytest.mark.parametrize("name", ["in_dim", "hidden_dim", "out_dim"])
@pytest.mark.parametrize("make", [ProjectionHead, BYOLHead])
def test_head_says_which_size_is_below_1(make, name):
    sizes = {"in_dim": 6, "hidden_dim": 5, "out_dim": 4, name: 0}
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{name}` must be at least 1, got 0.')}$"):
        make(**sizes)


def test_head_has_no_negative_number_of_layers():
    with pytest.raises(ValueError, match=re.escape("`layers` must be at least 0, got -1.")):
        ProjectionHead(6, 5, 4, layers=-1)


@pytest.mark.parametrize(("in_dim", "count"), [(2048, 9_449_472), (256, 2_109_440)])
def test_byols_projector_and_predictor_have_as_many_parameters_as_the_authors(in_dim, count):
    with torch.device("meta"):
        module = BYOLHead(in_dim)
    assert sum(p.numel() for p in module.parameters()) == count


def test_byol_head_is_linear_norm_relu_linear():
    torch.manual_seed(0)
    module = BYOLHead(6, 5, 4)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.rand(p.shape) - 0.3)
    w_1, b_1, gamma, beta, w_2 = module.parameters()
    hidden = torch.relu(gamma * normalised(features() @ w_1.T + b_1) + beta)
    assert_close(module(features()), hidden @ w_2.T, rtol=1e-5, atol=1e-6)


def test_byol_head_weights_start_from_a_cut_normal_of_their_input_and_biases_at_zero():
    torch.manual_seed(0)
    module = BYOLHead(400, 300, 200)
    for layer in (module.layers[0], module.layers[3]):
        std = layer.in_features**-0.5
        assert layer.weight.std().item() == pytest.approx(0.87962566 * std, rel=0.02)
        assert 1.9 * std < layer.weight.abs().max().item() <= 2 * std + 1e-7
    assert (module.layers[0].bias == 0).all()


def test_a_head_keeps_its_form_when_batchnorm_is_synchronised():
    head = nn.SyncBatchNorm.convert_sync_batchnorm(ProjectionHead(4, 4, 2))
    hidden, last = (module for module in head.modules() if isinstance(module, nn.SyncBatchNorm))
    assert hidden.bias is not None
    assert last.bias is None


@pytest.mark.parametrize("until", [0, 1, 2, 3])
def test_the_first_layers_are_the_heads_own_and_return_what_until_does(until):
    torch.manual_seed(0)
    head, features = ProjectionHead(6, 5, 4, layers=3).eval(), torch.rand(3, 6)
    first = head.first(until)
    assert torch.equal(first(features.clone()), head(features, until=until))
    own = {id(parameter) for parameter in head.parameters()}
    assert len(list(first.parameters())) == [0, 3, 6, 8][until]
    assert all(id(parameter) in own for parameter in first.parameters())


@pytest.mark.parametrize("until", [-1, 4])
def test_a_first_layer_that_is_not_there_is_refused(until):
    with pytest.raises(ValueError, match=f"^`until` must be from 0 to 3, the number of layers, got {until}.$"):
        ProjectionHead(6, 5, 4, layers=3).first(until)
