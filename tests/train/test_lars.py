"""LARS: against the numbers of the authors' code and a slow twin."""

import math
import re

import pytest
import torch
from cl_train import LARS, lars_groups
from torch import Tensor, nn
from torch.testing import assert_close


class SlowLARS:
    """The update of the LARS docstring, number by number, for one tensor as a list."""

    def __init__(self, w: list[float], *, momentum: float, weight_decay: float, eta: float, adapt: bool) -> None:
        self.w, self.v = list(w), [0.0] * len(w)
        self.momentum, self.weight_decay, self.eta, self.adapt = momentum, weight_decay, eta, adapt

    def step(self, g: list[float], *, lr: float) -> None:
        g = [gi + self.weight_decay * wi for gi, wi in zip(g, self.w, strict=True)]
        w_norm = math.sqrt(sum(wi**2 for wi in self.w))
        g_norm = math.sqrt(sum(gi**2 for gi in g))
        trust = self.eta * w_norm / g_norm if self.adapt and w_norm > 0 and g_norm > 0 else 1.0
        for i in range(len(g)):
            self.v[i] = self.momentum * self.v[i] + lr * trust * g[i]
            self.w[i] -= self.v[i]


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def golden_walk(*, lr_in_momentum: bool = True, rates=(1.0, 0.5, 0.25), **group) -> list[list[float]]:
    """w = (1, 2, 2) and g = (0.3, 0.4, 0) at rates 1, 0.5 and 0.25."""
    w, places = parameter(1, 2, 2), []
    optimizer = LARS([{"params": [w], **group}], lr=1.0, weight_decay=0.1, lr_in_momentum=lr_in_momentum)
    for lr in rates:
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor([0.3, 0.4, 0.0], dtype=torch.float64)
        optimizer.step()
        places.append(w.tolist())
    return places


def problem(seed: int = 0) -> tuple[list[nn.Parameter], list[dict]]:
    """Several tensors in two groups, one tensor all zero."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (5, 1, 12, 3)]
    with torch.no_grad():
        params[1].zero_()
    groups = [
        {"params": params[:3], "weight_decay": 0.03, "eta": 0.02},
        {"params": params[3:], "weight_decay": 0.0, "adapt": False},
    ]
    return params, groups


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_lars_gives_the_golden_walk():
    expected = [
        [0.998396432549, 1.997594648823, 1.999198216274],
        [0.996152152319, 1.994228228479, 1.998076076160],
        [0.993732264995, 1.990598397493, 1.996866132498],
    ]
    for place, wanted in zip(golden_walk(), expected, strict=True):
        assert place == pytest.approx(wanted, abs=1e-11)


def test_lars_of_an_excluded_parameter_gives_the_golden_walk():
    expected = [[0.7, 1.6, 2], [0.28, 1.04, 2], [-0.173, 0.436, 2]]
    for place, wanted in zip(golden_walk(adapt=False, weight_decay=0.0), expected, strict=True):
        assert place == pytest.approx(wanted, abs=1e-12)


def test_lars_with_the_rate_outside_gives_byols_golden_walk():
    expected = [
        [0.998396432549, 1.997594648823, 1.999198216274],
        [0.996873757673, 1.995310636509, 1.998436878836],
        [0.995788358228, 1.993682537341, 1.997894179114],
    ]
    for place, wanted in zip(golden_walk(lr_in_momentum=False), expected, strict=True):
        assert place == pytest.approx(wanted, abs=1e-11)


def test_lars_with_the_rate_outside_moves_an_excluded_parameter_as_torchs_sgd():
    found = golden_walk(lr_in_momentum=False, adapt=False, weight_decay=0.0)
    w = parameter(1, 2, 2)
    sgd = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    for place, wanted, lr in zip(
        found, [[0.7, 1.6, 2], [0.415, 1.22, 2], [0.21175, 0.949, 2]], (1, 0.5, 0.25), strict=True
    ):
        sgd.param_groups[0]["lr"] = lr
        w.grad = torch.tensor([0.3, 0.4, 0.0], dtype=torch.float64)
        sgd.step()
        assert place == pytest.approx(wanted, abs=1e-12)
        assert place == pytest.approx(w.tolist(), abs=1e-14)


@pytest.mark.parametrize("group", [{}, {"adapt": False, "weight_decay": 0.0}], ids=["adapted", "excluded"])
def test_where_the_rate_stands_makes_no_difference_while_it_is_constant(group):
    rates = [0.7] * 20
    inside, outside = (golden_walk(lr_in_momentum=inside, rates=rates, **group) for inside in (True, False))
    for place, wanted in zip(outside, inside, strict=True):
        assert place == pytest.approx(wanted, abs=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_is_its_slow_twin_over_50_steps(momentum):
    params, groups = problem()
    optimizer = LARS(groups, lr=0.1, momentum=momentum)
    twins = [
        SlowLARS(
            p.tolist(), momentum=momentum, weight_decay=group["weight_decay"], eta=group["eta"], adapt=group["adapt"]
        )
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    for step in range(50):
        lr = 0.1 * (1 + math.cos(step / 10))
        set_gradients(params, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for twin, p in zip(twins, params, strict=True):
            twin.step(p.grad.tolist(), lr=lr)
        optimizer.step()
    for twin, p in zip(twins, params, strict=True):
        assert p.tolist() == pytest.approx(twin.w, rel=1e-11, abs=1e-13)


def test_lars_gives_a_zero_tensor_the_whole_rate():
    w = parameter(0, 0)
    w.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    LARS([w], lr=0.5, eta=1e-3).step()
    assert w.tolist() == [-0.5, 1.0]


def test_lars_leaves_a_tensor_with_a_zero_gradient_in_place():
    w = parameter(1, 2)
    w.grad = torch.zeros_like(w)
    LARS([w], lr=0.5).step()
    assert w.tolist() == [1, 2]


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient():
    places = []
    for scale in (1.0, 1e6):
        w = parameter(1, 2)
        w.grad = scale * torch.tensor([0.3, 0.4], dtype=torch.float64)
        LARS([w], lr=0.5).step()
        places.append(w.detach())
    assert_close(places[0], places[1], rtol=1e-14, atol=0)


def test_lars_leaves_the_gradients_alone():
    w = parameter(1, 2)
    w.grad = torch.tensor([0.3, 0.4], dtype=torch.float64)
    LARS([w], lr=0.5, weight_decay=0.1).step()
    assert w.grad.tolist() == [0.3, 0.4]


def test_lars_skips_parameters_without_a_gradient():
    moved, still = parameter(1, 2), parameter(3)
    moved.grad = torch.ones_like(moved)
    optimizer = LARS([moved, still], lr=0.5, weight_decay=0.1)
    optimizer.step()
    assert still.tolist() == [3]
    assert list(optimizer.state) == [moved]


def test_lars_at_rate_0_moves_nothing():  # the first step of a warm-up
    w = parameter(1, 2)
    w.grad = torch.ones_like(w)
    optimizer = LARS([w], lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert w.tolist() == [1, 2]


def test_lars_minimises_what_the_closure_computes_and_returns_it():
    w = parameter(3, 4)
    optimizer = LARS([w], lr=1.0, eta=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25
    assert optimizer.step(closure).item() == pytest.approx(25 * 0.9**2)  # the step is a tenth of the norm
    assert optimizer.step() is None


def test_lars_continues_from_its_state_as_if_it_had_not_stopped(tmp_path):
    params, groups = problem()
    optimizer = LARS(groups, lr=0.1)
    for step in range(5):
        set_gradients(params, step)
        optimizer.step()
    resumed_params, resumed_groups = problem(seed=1)
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt")
    resumed = LARS(resumed_groups, lr=9.0, momentum=0.1)
    resumed.load_state_dict(saved["optimizer"])
    with torch.no_grad():
        for mine, theirs in zip(resumed_params, saved["params"], strict=True):
            mine.copy_(theirs)
    for step in range(5, 10):
        set_gradients(params, step)
        set_gradients(resumed_params, step)
        optimizer.step()
        resumed.step()
    for p, q in zip(params, resumed_params, strict=True):
        assert_close(q, p, rtol=0, atol=0)


def test_a_state_from_before_the_rate_could_stand_outside_is_simclrs():
    places = []
    for restarted in (False, True):
        w = parameter(1, 2)
        optimizer = LARS([w], lr=1.0)
        for lr in (1.0, 0.25):
            optimizer.param_groups[0]["lr"] = lr
            w.grad = torch.tensor([0.3, 0.4], dtype=torch.float64)
            optimizer.step()
            if restarted and lr == 1:
                state = optimizer.state_dict()
                del state["param_groups"][0]["lr_in_momentum"]
                optimizer = LARS([w], lr=1.0, lr_in_momentum=False)
                optimizer.load_state_dict(state)
        places.append(w.tolist())
    assert places[1] == places[0]
    assert optimizer.param_groups[0]["lr_in_momentum"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "`lr` must be positive, got 0."),
        ({"lr": math.nan}, "`lr` must be positive, got nan."),
        ({"momentum": 1.0}, "`momentum` must be in [0, 1), got 1.0."),
        ({"momentum": -0.1}, "`momentum` must be in [0, 1), got -0.1."),
        ({"weight_decay": -1e-6}, "`weight_decay` must be at least 0, got -1e-06."),
        ({"eta": 0.0}, "`eta` must be positive, got 0.0."),
    ],
)
def test_lars_says_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LARS([parameter(1)], **{"lr": 1.0, **arguments})


# Groups


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(4, 2, bias=False), nn.BatchNorm1d(2))
        self.probe = nn.Linear(4, 10)
        self.probes = nn.Linear(4, 3, bias=False)  # another name
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.0))


def names(network: nn.Module, group: dict) -> list[str]:
    name_of = {parameter: name for name, parameter in network.named_parameters()}
    return [name_of[parameter] for parameter in group["params"]]


def test_lars_groups_adapt_the_weights_of_layers():
    network = Network()
    assert names(network, lars_groups(network, weight_decay=1e-6)[0]) == [
        "conv.weight",
        "head.0.weight",
        "probes.weight",
    ]


def test_lars_groups_exclude_norms_biases_scalars_and_probes():
    network = Network()
    assert names(network, lars_groups(network, weight_decay=1e-6)[1]) == [
        "scale",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "head.1.weight",
        "head.1.bias",
        "probe.weight",
        "probe.bias",
    ]


def test_lars_groups_find_a_probe_at_any_depth():
    network = nn.ModuleDict({"method": Network()})
    assert "method.probe.weight" in names(network, lars_groups(network, weight_decay=1e-6)[1])


def test_lars_groups_decay_and_adapt_the_first_group_only():
    groups = lars_groups(Network(), weight_decay=1e-6)
    assert [(group["weight_decay"], group["adapt"]) for group in groups] == [(1e-6, True), (0.0, False)]


def test_lars_groups_tell_lars_what_to_leave_alone():
    layer = nn.Linear(2, 1).double()
    for p in layer.parameters():
        nn.init.constant_(p, 2.0)
        p.grad = torch.ones_like(p)
    LARS(lars_groups(layer, weight_decay=0.5), lr=0.1, eta=0.01).step()
    # weight: g' = 1 + 0.5 * 2 for both, trust = 0.01 * |w| / |g'| = 0.01; bias: the whole gradient
    assert layer.weight.tolist() == [pytest.approx([2 - 0.1 * 0.01 * 2] * 2, abs=1e-14)]
    assert layer.bias.tolist() == pytest.approx([2 - 0.1], abs=1e-14)
