"""The projection head: the authors' layers, counted and one by one."""

import itertools
import re

import pytest
import torch
from cl_models import ProjectionHead
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


@pytest.mark.parametrize("name", ["in_dim", "hidden_dim", "out_dim", "layers"])
def test_head_says_which_size_is_below_1(name):
    sizes = {"in_dim": 6, "hidden_dim": 5, "out_dim": 4, "layers": 2, name: 0}
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{name}` must be at least 1, got 0.')}$"):
        ProjectionHead(**sizes)


def test_a_head_keeps_its_form_when_batchnorm_is_synchronised():
    head = nn.SyncBatchNorm.convert_sync_batchnorm(ProjectionHead(4, 4, 2))
    hidden, last = (module for module in head.modules() if isinstance(module, nn.SyncBatchNorm))
    assert hidden.bias is not None
    assert last.bias is None
