"""Steps with numbers that are not finite: taken back without a trace, counted, and noticed."""

import copy
import json
import math

import pytest
import tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from cl_train import _run as running
from cl_train._finite import FiniteGuard
from torch import nn

POISONS = ["loss", "embedding", "gradient"]
YES, NO = torch.tensor(True), torch.tensor(False)


# The guard alone


class Net(nn.Module):
    """Everything that a step may change: parameters, statistics, counters, what is no whole block of memory."""

    def __init__(self):
        super().__init__()
        self.layer, self.bn = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.register_buffer("expanded", torch.ones(1).expand(4))
        self.register_buffer("sliced", torch.zeros(3, 6)[:, 2:4])
        self.register_buffer("flags", torch.tensor([True, False]))
        self.teacher = copy.deepcopy(self.layer).requires_grad_(False)

    def forward(self, images):
        return self.bn(self.layer(images)).mean((2, 3))


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)


class Counting(torch.optim.SGD):
    """Keeps numbers of the host in the state and in its groups, and new tensors in place of old ones."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
            for p in group["params"]:
                self.state[p]["count"] = self.state[p].get("count", 1000) + 1
                self.state[p]["mean"] = self.state[p].get("mean", torch.zeros_like(p)) + p.detach()
        super().step(closure)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda net: torch.optim.AdamW(net.parameters(), 0.1),
    "fused adam": lambda net: torch.optim.AdamW(net.parameters(), 0.1, fused=True),
    "host numbers": lambda net: Counting(net.parameters(), 0.1, momentum=0.9),
}


def take(net, optimizer, guard, *, step, finite=YES, poison=None):
    guard.remember()
    value = net(torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))).square().sum()
    value.backward()
    if poison is not None:
        net.layer.weight.grad[0, 0] = poison
    counts = guard.judge(finite, step=step)
    optimizer.step()
    with torch.no_grad():  # what a method does after a step
        net.teacher.weight.lerp_(net.layer.weight, 0.1)
        net.sliced.add_(1)
        net.flags.logical_not_()
    optimizer.zero_grad()
    guard.settle(counts)
    return counts


def everything(net, optimizer):
    state = optimizer.state_dict()
    entries = {f"{p} {name}": value for p, values in state["state"].items() for name, value in values.items()}
    return {**net.state_dict(), **entries}, [{**group} for group in state["param_groups"]]


def assert_equal(found, expected):
    assert found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert torch.equal(torch.as_tensor(found[0][name]), torch.as_tensor(value)), name
    assert found[1] == expected[1]


def setup(name, **settings):
    torch.manual_seed(0)
    net = Net().to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[name](net)
    return net, optimizer, FiniteGuard(net, optimizer, **{"on_nonfinite": "skip", "scaled": False} | settings)


@pytest.mark.parametrize("good", [0, 2], ids=["the first step", "a later step"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_leaves_nothing_behind(name, good, poison):
    net, optimizer, guard = setup(name)
    for step in range(good):
        take(net, optimizer, guard, step=step)
    before = copy.deepcopy(everything(net, optimizer))
    assert not take(net, optimizer, guard, step=good, poison=poison)
    assert_equal(everything(net, optimizer), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_after_a_skipped_one_are_those_of_a_run_without_it(name):
    runs = []
    for bad in ([0, 3], []):
        net, optimizer, guard = setup(name)
        for step in range(6):
            if step in (0, 3):
                if bad:
                    take(net, optimizer, guard, step=step, finite=NO)
            else:
                take(net, optimizer, guard, step=step)
        runs.append(copy.deepcopy(everything(net, optimizer)))
    assert_equal(*runs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_guard_changes_nothing_of_good_steps(name):
    guarded, bare = setup(name), setup(name)
    for step in range(3):
        take(*guarded, step=step)
    net, optimizer, guard = bare
    guard.settle = lambda counts: None
    for step in range(3):
        take(net, optimizer, guard, step=step)
    assert_equal(everything(*guarded[:2]), everything(net, optimizer))


def test_skipping_counts_each_bad_step():
    net, optimizer, guard = setup("sgd", skipped=2)
    counts = [bool(take(net, optimizer, guard, step=step, finite=NO if step in (1, 3) else YES)) for step in range(5)]
    assert counts == [True, False, True, False, True]
    assert (guard.skipped(), guard.ended()) == (4, False)


def test_stopping_takes_back_the_first_bad_step_and_all_after_it():
    net, optimizer, guard = setup("sgd", on_nonfinite="stop")
    take(net, optimizer, guard, step=7)
    before = copy.deepcopy(everything(net, optimizer))
    counts = [bool(take(net, optimizer, guard, step=step, finite=NO if step == 8 else YES)) for step in (8, 9, 10)]
    assert counts == [False, False, False]
    assert (guard.ended(), int(guard.first)) == (True, 8)
    assert_equal(everything(net, optimizer), before)


def test_a_bad_step_that_is_forgotten_is_not_counted_but_those_of_the_run_before_are():
    net, optimizer, guard = setup("sgd", on_nonfinite="stop", skipped=3)
    take(net, optimizer, guard, step=0, finite=NO)
    guard.forget()
    assert (guard.skipped(), guard.ended()) == (3, False)


def test_infinite_gradients_are_left_to_a_gradient_scaler():
    net, _, guard = setup("sgd", scaled=True)
    guard.remember()
    net(torch.rand(4, 2, 3, 3)).sum().backward()
    net.layer.weight.grad[0, 0] = math.inf
    assert guard.judge(YES, step=0)
    assert net.layer.weight.grad[0, 0].isinf().all()


def test_infinite_gradients_without_end_count_as_not_finite_with_a_scaler_too():
    """50 in a row; a good one in between begins the count anew."""
    net, _, guard = setup("sgd", scaled=True, on_nonfinite="stop")
    verdicts = []
    for step in range(49 + 1 + 52):
        guard.remember()
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 if step == 49 else math.nan)
        verdicts.append(bool(guard.judge(YES, step=step)))
    assert verdicts == [True] * 99 + [False] * 3
    assert (guard.ended(), int(guard.first), guard.skipped()) == (True, 99, 1)


# Whole runs


def run(out, poison=None, at=(), **changes):
    trained = tiny.method()
    trained.poison, trained.at = poison, at
    return tiny.run(out, trained=trained, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was left alone, with a checkpoint of every step."""
    out = tmp_path_factory.mktemp("whole")
    tiny.run(out, checkpoint_every=1, keep_checkpoints=tiny.STEPS)
    return out


@pytest.mark.parametrize("at", [0, 4, 5, tiny.STEPS - 1])
@pytest.mark.parametrize("poison", POISONS)
def test_a_run_stops_with_the_state_before_the_bad_step(tmp_path, whole, poison, at):
    with pytest.raises(FloatingPointError, match=f"is not finite at step {at};"):
        run(tmp_path, poison, [at])
    if at > 0:
        assert tiny.gap(tiny.saved(tmp_path, step=at), tiny.saved(whole, step=at)) == 0
    else:
        untouched = tiny.method().state_dict()
        assert tiny.gap(tiny.saved(tmp_path, step=0), dict(untouched)) == 0
    assert tiny.run(tmp_path).steps == tiny.STEPS
    assert tiny.gap(tiny.saved(tmp_path), tiny.saved(whole)) == 0
    assert tiny.log_of(tmp_path) == tiny.log_of(whole)


def test_the_images_of_a_bad_step_are_written_down(tmp_path):
    from cl_train._plan import Plan

    with pytest.raises(FloatingPointError):
        run(tmp_path, "loss", [5], seed=3)
    plan = Plan(tiny.images(), tiny.BATCH, tiny.EPOCHS, 3, 0, 1)
    assert json.loads((tmp_path / "nonfinite.json").read_text()) == {
        "step": 5,
        "epoch": 1,
        "seed": 3,
        "images": plan.ids(5).tolist(),
    }


@pytest.mark.parametrize("poison", POISONS)
def test_a_run_that_skips_is_one_that_never_took_these_steps(tmp_path, monkeypatch, poison):
    bad = [0, 4, 5, tiny.STEPS - 1]
    result = run(tmp_path / "skips", poison, bad, on_nonfinite="skip")
    original = running.Run._step
    monkeypatch.setattr(running.Run, "_step", lambda self, b, step: None if step in bad else original(self, b, step))
    tiny.run(tmp_path / "lacks")
    assert result.skipped_steps == len(bad)
    assert tiny.gap(tiny.saved(tmp_path / "skips"), tiny.saved(tmp_path / "lacks")) == 0


@pytest.mark.parametrize("poison", POISONS)
def test_skipped_steps_are_in_the_log_as_a_count_and_in_no_mean(tmp_path, whole, poison):
    run(tmp_path, poison, [tiny.STEPS - 1], on_nonfinite="skip", log_every=1)
    entries = tiny.log_of(tmp_path)
    assert [entry["step"] for entry in entries] == [*range(1, tiny.STEPS + 1)]
    assert entries[-1].keys() == {"step", "epoch", "lr", "skipped_steps"}
    assert entries[-1]["skipped_steps"] == 1
    assert not [entry for entry in entries[:-1] if "skipped_steps" in entry]
    assert all(math.isfinite(value) for entry in entries for value in entry.values())


def test_a_mean_over_a_window_leaves_out_the_skipped_step(tmp_path):
    run(tmp_path / "each", log_every=1, max_steps=3)
    run(tmp_path / "window", "loss", [2], on_nonfinite="skip", log_every=3, max_steps=3)
    first, second, _ = (entry["loss"] for entry in tiny.log_of(tmp_path / "each"))
    assert tiny.log_of(tmp_path / "window")[0]["loss"] == pytest.approx((first + second) / 2, rel=1e-6)


def test_the_count_of_skipped_steps_outlives_a_restart(tmp_path):
    run(tmp_path, "loss", [1, 2], on_nonfinite="skip", max_steps=4)
    assert run(tmp_path, "loss", [1], on_nonfinite="skip").skipped_steps == 3


def test_a_run_that_stopped_can_go_on_and_skip(tmp_path):
    with pytest.raises(FloatingPointError):
        run(tmp_path, "loss", [5])
    assert run(tmp_path, "loss", [0], on_nonfinite="skip").skipped_steps == 1


def test_what_follows_a_step_does_not_follow_one_that_the_scaler_skipped(tmp_path, monkeypatch):
    """What the scaler of fp16 says, which runs on CUDA only, is played by the optimiser that Accelerate prepares."""
    skipped = [0, 5]
    trained = tiny.method()
    trained.taken = tiny.Counter()
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: trained.calls - 1 in skipped))
    tiny.run(tmp_path, trained=trained)
    assert trained.taken.value == tiny.STEPS - len(skipped)
