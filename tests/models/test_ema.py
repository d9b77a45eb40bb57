"""BYOL's target: the average, what it leaves alone, and that several processes keep the same one."""

import copy
import math
import re
from functools import cache

import _norm_worker as worker
import pytest
import torch
from _norm_worker import SHARES, STEPS, WORLDS, Seen, network
from cl_models import EMA, ProjectionHead, ema_decay, resnet18
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.testing import assert_close

PLACES = [(world, kind) for world in WORLDS for kind in SHARES[world]]


@pytest.fixture(scope="module")
def seen() -> dict[int, list[Seen]]:
    return worker.spawn()


@cache
def alone() -> Seen:
    return worker.train_byol()


def gaps(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max((actual[name].double() - expected[name].double()).abs().max().item() for name in expected)


def equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert actual.keys() == expected.keys()
    return all(torch.equal(actual[name], expected[name]) for name in expected)


def state(module: nn.Module) -> dict[str, Tensor]:
    return worker.copied(module.state_dict())


def linear(value: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    module = nn.Linear(2, 3, dtype=dtype)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


# The decay


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.996), (312_784 // 4, 0.99658578644), (312_784 // 2, 0.998), (312_784, 1.0)]
)
def test_ema_decay_has_the_golden_values(step, decay):
    assert ema_decay(step, base=0.996, total_steps=312_784) == pytest.approx(decay, abs=1e-11)


def test_ema_decay_of_a_base_of_1_or_0_reaches_the_ends():
    assert [ema_decay(step, base=1, total_steps=2) for step in range(3)] == [1, 1, 1]
    assert [ema_decay(step, base=0, total_steps=2) for step in range(3)] == pytest.approx([0, 0.5, 1])


def test_ema_decay_never_falls_or_leaves_its_range():
    decays = [ema_decay(step, base=0.3, total_steps=1000) for step in range(1001)]
    assert decays == sorted(decays)
    assert decays[0] == pytest.approx(0.3)
    assert decays[-1] == 1


@pytest.mark.parametrize("step", [-1, 11])
def test_ema_decay_says_which_steps_there_are(step):
    message = f"`step` must be from 0 to `total_steps`, 10, got {step}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ema_decay(step, base=0.9, total_steps=10)


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_is_from_0_to_1(decay):
    with pytest.raises(ValueError, match=f"^`base` must be from 0 to 1, got {decay}.$"):
        ema_decay(0, base=decay, total_steps=10)
    with pytest.raises(ValueError, match=f"^`decay` must be from 0 to 1, got {decay}.$"):
        EMA(linear(0), decay)


def test_there_is_at_least_one_step():
    with pytest.raises(ValueError, match=r"^`total_steps` must be at least 1, got 0\.$"):
        ema_decay(0, base=0.9, total_steps=0)
    with pytest.raises(ValueError, match=r"^`total_steps` must be at least 1, got 0\.$"):
        EMA(linear(0), 0.9, total_steps=0)


# The average


def loop(start: Tensor, after_each_step: list[Tensor], base: float, total: int | None) -> Tensor:
    """The target's value by the paper's formula, number by number."""
    target = start.flatten().tolist()
    for k, online in enumerate(after_each_step):
        tau = base if total is None else 1 - (1 - base) * (math.cos(math.pi * k / total) + 1) / 2
        target = [tau * xi + (1 - tau) * theta for xi, theta in zip(target, online.flatten().tolist(), strict=True)]
    return torch.tensor(target, dtype=torch.float64).view(start.shape)


@pytest.mark.parametrize("total", [None, 7, 20])
@pytest.mark.parametrize("base", [0.0, 0.3, 0.996, 1.0])
def test_ema_is_the_papers_formula(base, total):
    online = network()
    target = EMA(online, base, total_steps=total)
    start, steps = state(online), [state(network(seed)) for seed in range(1, 8)]
    for step in steps:
        online.load_state_dict(step)
        target.update(online)
    for name, parameter in target.module.named_parameters():
        expected = loop(start[name], [step[name] for step in steps], base, total)
        assert_close(parameter, expected, rtol=0, atol=1e-14)
    assert target.step.item() == 7


def test_ema_with_a_constant_decay_approaches_at_that_rate():
    target = EMA(linear(0.0), 0.9)
    for _ in range(50):
        target.update(linear(1.0))
    assert_close(target.module.weight, torch.full((3, 2), 1 - 0.9**50, dtype=torch.float64))


def test_ema_of_float32_follows_in_float32():
    target = EMA(linear(0.0, torch.float32), 0.996)
    target.update(linear(1.0, torch.float32))
    assert target.module.weight.dtype == torch.float32
    assert_close(target.module.weight, torch.full((3, 2), 0.004))


def test_ema_takes_as_many_updates_as_it_was_told():
    target = EMA(linear(0.0), 0.5, total_steps=2)
    target.update(linear(1.0))
    target.update(linear(1.0))
    before = state(target)
    with pytest.raises(ValueError, match=r"^`update` must be called at most `total_steps` times, 2\.$"):
        target.update(linear(1.0))
    assert equal(state(target), before)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_an_update_of_a_step_by_its_number_takes_that_steps_decay_and_counts_from_there(step):
    target = EMA(linear(0.0), 0.5, total_steps=7)
    target.update(linear(0.0))
    target.update(linear(1.0), step=step)
    tau = 1 - 0.5 * (math.cos(math.pi * step / 7) + 1) / 2
    assert_close(target.module.weight, torch.full((3, 2), 1 - tau, dtype=torch.float64), rtol=0, atol=1e-15)
    assert target.step.item() == step + 1
    if step < 6:  # the next one without a number is the one after it
        target.update(linear(0.0))
        tau_next = 1 - 0.5 * (math.cos(math.pi * (step + 1) / 7) + 1) / 2
        expected = torch.full((3, 2), tau_next * (1 - tau), dtype=torch.float64)
        assert_close(target.module.weight, expected, rtol=0, atol=1e-15)


def test_an_update_by_its_number_with_a_constant_decay_counts_too():
    target = EMA(linear(0.0), 0.75)
    target.update(linear(1.0), step=41)
    assert_close(target.module.weight, torch.full((3, 2), 0.25, dtype=torch.float64))
    assert target.step.item() == 42


@pytest.mark.parametrize("total", [None, 5])
def test_an_update_of_a_negative_step_is_refused(total):
    target = EMA(linear(0.0), 0.5, total_steps=total)
    before = state(target)
    with pytest.raises(ValueError, match=r"^`step` must be at least 0, got -1\.$"):
        target.update(linear(1.0), step=-1)
    assert equal(state(target), before)


@pytest.mark.parametrize("step", [5, 9])
def test_an_update_of_a_step_beyond_the_last_is_refused(step):
    target = EMA(linear(0.0), 0.5, total_steps=5)
    before = state(target)
    message = rf"^`update` must be called at most `total_steps` times, 5, got `step` {step}\.$"
    with pytest.raises(ValueError, match=message):
        target.update(linear(1.0), step=step)
    assert equal(state(target), before)


def test_ema_of_nothing_counts():
    target = EMA(nn.Identity(), 0.5)
    target.update(nn.Identity())
    assert target.step.item() == 1


def test_ema_averages_a_shared_parameter_once():
    online = nn.Sequential(linear(0.0), linear(0.0))
    online[1].weight = online[0].weight
    target = EMA(online, 0.9)
    nn.init.ones_(online[0].weight)
    target.update(online)
    assert target.module[0].weight is target.module[1].weight
    assert_close(target.module[0].weight, torch.full((3, 2), 0.1, dtype=torch.float64))


def test_ema_reads_no_number_from_the_device():
    with torch.device("meta"):  # where there are none to read
        online = resnet18(width=0.125)
        target = EMA(online, 0.99, total_steps=3)
    for _ in range(3):
        target.update(online)
    assert target.step.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ema_does_not_wait_for_the_gpu():
    online = resnet18(width=0.125).cuda()
    target = EMA(online, 0.99, total_steps=3)
    target.update(online)
    torch.cuda.set_sync_debug_mode("error")
    try:
        target.update(online)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert target.step.is_cuda


def test_ema_update_takes_what_torch_compile_made():
    online = linear(1.0)
    target, other = EMA(linear(0.0), 0.9), EMA(linear(0.0), 0.9)
    target.update(torch.compile(online))
    other.update(online)
    assert equal(state(target), state(other))


# What is not averaged


def test_ema_keeps_its_own_batch_statistics():
    online, x = network(), worker.images(0)
    target = EMA(online, 0.9)
    twin = copy.deepcopy(online)
    online(worker.images(3))  # records other statistics
    buffers = dict(target.module.named_buffers())
    before = worker.copied(buffers)
    target.update(online)
    assert equal(dict(target.module.named_buffers()), before)
    twin.load_state_dict(dict(target.module.state_dict()))
    assert_close(target(x), twin(x).detach(), rtol=0, atol=0)
    assert equal(dict(target.module.named_buffers()), dict(twin.named_buffers()))
    assert not equal(dict(target.module.named_buffers()), before)


def test_ema_in_evaluation_uses_its_own_running_statistics():
    online, x = network(), worker.images(0)
    target = EMA(online, 0.9).eval()
    online(worker.images(3))
    assert not target.module.training
    assert_close(target(x[:2]), target(x)[:2])
    assert not torch.allclose(target(x), online.eval()(x))


def test_ema_starts_in_the_mode_of_the_module():
    online = network()
    online[0].eval()
    target = EMA(online, 0.9)
    assert [m.training for m in target.module.modules()] == [m.training for m in online.modules()]
    assert target.training
    assert not EMA(online.eval(), 0.9).training


# It is not trained


def test_ema_output_has_no_gradient():
    target = EMA(network(), 0.9)
    assert not any(p.requires_grad for p in target.parameters())
    x = worker.images(0).requires_grad_()
    assert not target(x).requires_grad
    assert all(p.requires_grad for p in network().parameters())


def test_ema_leaves_the_module_as_it_was():
    online = network()
    before, parameters = state(online), list(online.parameters())
    target = EMA(online, 0.5)
    target.update(online)
    target(worker.images(0))
    assert equal(state(online), before)
    assert all(p.requires_grad for p in parameters)
    assert not {id(p) for p in parameters} & {id(p) for p in target.parameters()}


def test_the_optimiser_never_changes_ema():
    pair = nn.ModuleDict({"online": network()})
    pair["target"] = EMA(pair["online"], 0.9)
    optimizer = torch.optim.SGD(pair.parameters(), 0.5, momentum=0.9, weight_decay=0.1)
    before = {name: p.clone() for name, p in pair["target"].named_parameters()}
    for seed in range(3):
        out, wanted = pair["online"](worker.images(seed)), pair["target"](worker.images(seed))
        (out - wanted).square().sum().backward()
        optimizer.step()
    assert equal(dict(pair["target"].named_parameters()), before)
    assert not equal(dict(pair["online"].named_parameters()), dict(pair["target"].module.named_parameters()))


def test_ema_after_a_step_that_the_scaler_skipped_is_as_before():
    online, scaler = network().float(), torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    target, optimizer = EMA(online, 0.9, total_steps=9), torch.optim.SGD(online.parameters(), 0.1)
    counts = []
    for infinite in (False, True, False, False):
        before = state(target)
        optimizer.zero_grad()
        scaler.scale(online(worker.images(0).float()).square().sum()).backward()
        if infinite:
            next(online.parameters()).grad[0] = torch.inf
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            target.update(online)
        assert equal(state(target), before) == infinite
        counts.append(target.step.item())
    assert counts == [1, 1, 2, 3]
    assert scaler.get_scale() == 4.0  # halved by the second, doubled by the last


# It is saved


def test_ema_comes_back_with_its_place_in_the_schedule():
    steps = [state(network(seed)) for seed in range(1, 6)]
    online = network()
    whole, first = (EMA(online, 0.5, total_steps=5) for _ in range(2))
    second = nn.ModuleDict({"target": EMA(network(9), 0.5, total_steps=5)})
    for k, step in enumerate(steps):
        if k == 3:
            second.load_state_dict(load(save(nn.ModuleDict({"target": first}).state_dict())))
        online.load_state_dict(step)
        whole.update(online)
        (first if k < 3 else second["target"]).update(online)
    assert equal(state(whole), state(second["target"]))
    assert whole.step.item() == 5


def test_ema_state_is_the_modules_and_the_step():
    online = network()
    names = [f"module.{name}" for name in online.state_dict()]
    assert sorted(EMA(online, 0.9).state_dict()) == sorted([*names, "step"])


def test_a_copy_of_ema_counts_by_itself():
    target = EMA(linear(0.0), 0.5, total_steps=3)
    target.update(linear(1.0))
    other = copy.deepcopy(target)
    other.update(linear(1.0))
    assert [target.step.item(), other.step.item()] == [1, 2]
    other.load_state_dict(target.state_dict())
    target.update(linear(1.0))
    other.update(linear(1.0))
    assert equal(state(target), state(other))


def test_ema_shows_what_it_was_told():
    assert "decay=0.9, total_steps=5" in repr(EMA(linear(0.0), 0.9, total_steps=5))


def test_ema_shows_the_modules_attributes():
    assert EMA(resnet18(width=0.125), 0.9).module.feature_dim == 64


# What is said


def changed(name: str) -> nn.Module:
    module = ProjectionHead(4, 3, 2)
    if name == "shape":
        module.layers[3] = nn.Linear(3, 5, bias=False)
    elif name == "fewer":
        module.layers[4].register_parameter("weight", None)
    elif name == "more":
        module.layers[4].bias = nn.Parameter(torch.zeros(2))
    elif name == "dtype":
        module.layers[1].double()
    else:
        module.layers[0].to("meta")
    return module


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "'layers.3.weight' is (2, 3) torch.float32 on cpu there, got (5, 3) torch.float32 on cpu."),
        ("fewer", "'layers.4.weight' is (2,) torch.float32 on cpu there, got missing."),
        ("more", "'layers.4.bias' is missing there, got (2,) torch.float32 on cpu."),
        ("dtype", "'layers.1.weight' is (3,) torch.float32 on cpu there, got (3,) torch.float64 on cpu."),
        ("device", "'layers.0.weight' is (3, 4) torch.float32 on cpu there, got (3, 4) torch.float32 on meta."),
    ],
)
def test_ema_says_which_parameter_differs_and_changes_nothing(name, message):
    target = EMA(ProjectionHead(4, 3, 2), 0.9)
    before = state(target)
    whole = f"`module` must have the copy's parameters: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(whole)}$"):
        target.update(changed(name))
    assert equal(state(target), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ema_refuses_parameters_in_which_its_steps_would_vanish(dtype):
    message = f"`module` must have parameters of float32 or float64, '1.weight' is {dtype}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        EMA(nn.Sequential(linear(0.0), linear(0.0, dtype)), 0.9)
    target = EMA(linear(0.0), 0.9).to(dtype)
    with pytest.raises(ValueError, match=f"'weight' is {dtype}.$"):
        target.update(linear(0.0, dtype))


@pytest.mark.parametrize("world", WORLDS)
def test_ema_refuses_to_copy_the_wrapper_of_several_processes(seen, world):
    for result in seen[world]:
        assert result["wrapped"] == "`module` must be the network itself, got its DistributedDataParallel."


# On several processes


@pytest.mark.parametrize(("world", "kind"), PLACES)
@pytest.mark.parametrize("part", ["online", "target"])
def test_ema_of_several_processes_equals_one_process(seen, part, world, kind):
    for result in seen[world]:
        assert gaps(result["byol", kind][part], alone()[part]) <= 1e-10


@pytest.mark.parametrize("world", WORLDS)
def test_all_processes_have_the_same_ema_bit_for_bit(seen, world):
    for kind in SHARES[world]:
        first, *others = (result["byol", kind]["target"] for result in seen[world])
        assert all(equal(other, first) for other in others)


@pytest.mark.parametrize("world", WORLDS)
def test_a_training_that_was_saved_in_the_middle_ends_bit_for_bit_the_same(seen, world):
    for result in seen[world]:
        for part in ("online", "target"):
            assert equal(result["paused"][part], result["whole"][part])
        assert result["paused"]["target"]["step"].item() == STEPS


@pytest.mark.parametrize("world", WORLDS)
def test_an_update_waits_for_no_other_process(seen, world):
    for result in seen[world]:
        assert result["collectives"]["update"] == {}
