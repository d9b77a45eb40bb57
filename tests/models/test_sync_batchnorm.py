"""BatchNorm over the rows of all processes, against torch's BatchNorm on one process with all rows."""

import copy
import re
from functools import cache
from typing import Any

import _norm_worker as worker
import pytest
import torch
from _norm_worker import LAYERS, MEMBERS, PLANTED, ROUNDED, SHARES, STEPS, WORLDS, Seen
from cl_models import EMA, ProjectionHead, resnet18, sync_batchnorm
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # CUDA tensors without a GPU, as far as their kind goes

TOLERANCE = 1e-10
BITS = {"float32": 1e-3, "bfloat16": 2**-7, "float16": 2**-10}  # float32's input has a mean of 1000
PLACES = [(world, kind) for world in WORLDS for kind in SHARES[world]]


@pytest.fixture(scope="module")
def seen() -> dict[int, list[Seen]]:
    return worker.spawn()


@cache
def alone(name: str) -> Seen:
    """What one process with all rows makes of a layer of torch."""
    case = {**LAYERS, **ROUNDED}[name]
    layer = case.make()
    return worker.train_layer(layer, [x.to(case.dtype).double() for x in case.batches()])


@cache
def network_alone() -> Seen:
    return worker.train_network()


def gap(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry where that is above 1."""
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs()
    return (difference.max() / expected.abs().max().clamp(min=1)).item() if difference.numel() else 0.0


def gaps(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max((gap(actual[name], expected[name]) for name in expected), default=0.0)


def joined(results: list[Seen], key: Any, name: str) -> list[Tensor]:
    """What the processes have of each of two batches, as one."""
    return [torch.cat(parts) for parts in zip(*(result[key][name] for result in results), strict=True)]


def assert_rows(results: list[Seen], key: Any, expected: Seen, tolerance: float) -> None:
    for name in ("out", "dx"):
        for actual, wanted in zip(joined(results, key, name), expected[name], strict=True):
            assert gap(actual, wanted) <= tolerance, name


def assert_same(results: list[Seen], key: Any, expected: Seen, tolerance: float = TOLERANCE) -> None:
    assert_rows(results, key, expected, tolerance)
    for result in results:
        assert gaps(result[key]["grads"], expected["grads"]) <= tolerance, "grads"
        assert gaps(result[key]["state"], expected["state"]) <= tolerance, "state"
        assert gap(result[key]["evaluated"], expected["evaluated"]) <= tolerance, "evaluated"


# As on one process


@pytest.mark.parametrize(("world", "kind"), PLACES)
@pytest.mark.parametrize("name", ["1d", "1d of sequences", "2d", "3d"])
def test_a_layer_of_several_processes_equals_torchs_of_one(seen, name, world, kind):
    assert_same(seen[world], (name, kind), alone(name))


@pytest.mark.parametrize(("world", "kind"), PLACES)
@pytest.mark.parametrize("name", ["scale only", "shift only", "neither", "untracked", "cumulative", "other numbers"])
def test_a_layer_with_other_options_equals_torchs_of_one_process(seen, name, world, kind):
    assert_same(seen[world], (name, kind), alone(name))


@pytest.mark.parametrize(("world", "kind"), PLACES)
def test_a_small_variance_beside_a_large_mean_is_not_lost(seen, world, kind):
    assert_same(seen[world], ("large mean", kind), alone("large mean"))  # a difference of mean squares: 1e-6


@pytest.mark.parametrize(("world", "kind"), PLACES)
@pytest.mark.parametrize("name", ROUNDED)
def test_input_of_few_bits_is_normalised_in_float32(seen, name, world, kind):
    results, key, expected = seen[world], (name, kind), alone(name)
    assert_rows(results, key, expected, BITS[name])
    for result in results:
        assert {x.dtype for part in ("out", "dx") for x in result[key][part]} == {ROUNDED[name].dtype}
        assert gaps(result[key]["state"], expected["state"]) <= 1e-5
        # gradients of what is rounded on the way out and in again
        assert gaps(result[key]["grads"], expected["grads"]) <= BITS[name]


@pytest.mark.parametrize("world", WORLDS)
def test_a_layer_of_float16_has_gradients_and_buffers_of_float16(seen, world):
    assert_rows(seen[world], "half", alone("2d"), 2**-9)
    for result in seen[world]:
        found = result["half"]
        tensors = [*found["grads"].values(), *found["dx"], found["state"]["running_var"]]
        assert {tensor.dtype for tensor in tensors} == {torch.float16}
        assert gaps(found["state"], alone("2d")["state"]) <= 2**-9


@pytest.mark.parametrize(("world", "kind"), PLACES)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_network_trained_on_several_processes_equals_one_process(seen, steps, world, kind):
    for result in seen[world]:
        assert gaps(result["network", kind][steps], network_alone()[steps]) <= TOLERANCE


@pytest.mark.parametrize("world", WORLDS)
def test_all_processes_have_the_same_running_statistics_bit_for_bit(seen, world):
    for kind in SHARES[world]:
        states = [result["2d", kind]["state"] for result in seen[world]]
        for state in states[1:]:
            assert all(torch.equal(state[name], states[0][name]) for name in state)


# The tests above can fail


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("bug", "where"),
    [("mean of means", "out"), ("squares within", "out"), ("own statistics", "out"), ("own sums in backward", "dx")],
)
def test_a_bug_that_many_have_written_is_noticed(seen, bug, where, world):
    assert bug in PLANTED
    with pytest.raises(AssertionError, match=f"^{where}\n"):
        assert_same(seen[world], (bug, "planted"), alone("2d"))


# Who waits for whom


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("pass_", "calls"),
    [
        ("forward", {"all_gather": 1}),
        ("backward", {"all_reduce": 1}),
        ("backward of a first layer", {}),
        ("evaluation", {}),
    ],
)
def test_processes_wait_for_each_other_once_forward_and_once_backward(seen, pass_, calls, world):
    for result in seen[world]:
        assert result["collectives"][pass_] == calls


def test_a_group_has_statistics_of_its_own(seen):
    assert_same([seen[3][rank] for rank in MEMBERS], "group", alone("2d"))


def test_a_group_of_one_has_torchs_batchnorm(seen):
    for rank in MEMBERS:
        assert_same([seen[3][rank]], "group of one", alone("2d"), 0)


def test_a_process_outside_of_the_group_is_told(seen):
    assert seen[3][1]["group"] == "`group` must have this process as a member, got a group of others."


@pytest.mark.parametrize("name", LAYERS)
def test_without_other_processes_a_layer_is_torchs_bit_for_bit(name):
    case = LAYERS[name]
    assert_same([{0: worker.train_layer(sync_batchnorm(case.make()), case.batches())}], 0, alone(name), 0)


# What is said


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("total", [0, 1])
def test_every_process_is_told_of_too_few_values(seen, total, world):
    for result in seen[world]:
        message = f"`input` must have more than 1 value per channel on all processes, got {total}."
        assert result["few"]["said", total] == message


@pytest.mark.parametrize("world", WORLDS)
def test_what_was_refused_left_no_trace_and_the_next_batch_is_right(seen, world):
    layer = nn.BatchNorm1d(5).double()
    expected = layer.state_dict()
    for result in seen[world]:
        assert gaps(result["few"]["state"], expected) == 0
    rows = layer(worker.normal(2, 5))
    assert gap(torch.cat([result["few"]["two"] for result in seen[world]]), rows) <= TOLERANCE


@pytest.mark.parametrize("world", WORLDS)
def test_a_layer_says_how_many_channels_it_has(seen, world):
    for result in seen[world]:
        assert result["few"]["channels"] == "`input` must have 5 channels, got 4."


@pytest.mark.parametrize("world", WORLDS)
def test_a_layer_takes_the_dimensions_of_the_one_it_replaces(seen, world):
    for result in seen[world]:
        assert result["few"]["dimensions"] == "expected 2D or 3D input (got 4D input)"


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (4, 3, 2, 2)), (nn.BatchNorm2d, (4, 3, 2)), (nn.BatchNorm3d, (4, 3, 2, 2))]
)
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_refuses_dimensions_on_one_process_too(kind, shape, training):
    layer = sync_batchnorm(kind(3)).train(training)
    with pytest.raises(ValueError, match=rf"^expected .* input \(got {len(shape)}D input\)$"):
        layer(torch.rand(shape))


class Activated(nn.BatchNorm2d):
    """As timm's, which does more than BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("kind", [Activated, nn.LazyBatchNorm2d])
def test_a_batchnorm_of_another_class_is_refused_before_anything_changes(kind):
    unknown = kind(4) if kind is Activated else kind()
    module = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(unknown), nn.BatchNorm2d(4))
    name = f"{kind.__module__}.{kind.__qualname__}"
    message = f"`module` must hold no BatchNorm but torch's 1d, 2d and 3d, '1.0' is a {name}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sync_batchnorm(module)
    assert [type(module[0]), type(module[1][0]), type(module[2])] == [nn.BatchNorm2d, kind, nn.BatchNorm2d]


def test_a_module_that_is_itself_another_batchnorm_is_refused():
    message = f"1d, 2d and 3d, it is a {Activated.__module__}.Activated."
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        sync_batchnorm(Activated(4))


# What is kept


def test_parameters_and_buffers_stay_the_same_objects_with_the_same_names():
    module = nn.Sequential(resnet18(width=0.125), ProjectionHead(64, 8, 4))
    before = module.state_dict(keep_vars=True)
    module[0].bn1.weight.requires_grad_(False)
    assert sync_batchnorm(module) is module
    after = module.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert not module[0].bn1.weight.requires_grad


def test_every_batchnorm_is_replaced_and_a_head_keeps_its_form():
    module = sync_batchnorm(nn.Sequential(resnet18(width=0.125), ProjectionHead(64, 8, 4), nn.BatchNorm3d(2)))
    kinds = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    assert not kinds & {type(m) for m in module.modules()}
    norms = [m for m in module[1].modules() if isinstance(m, nn.BatchNorm1d)]
    assert [norm.bias is not None for norm in norms] == [True, False]


def test_what_asks_for_torchs_class_still_finds_the_layer():
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        layer = sync_batchnorm(kind(3))
        assert isinstance(layer, kind)
        assert not isinstance(layer, nn.SyncBatchNorm)  # DistributedDataParallel refuses it on the CPU


def test_a_batchnorm_by_itself_is_replaced():
    layer = sync_batchnorm(nn.BatchNorm1d(3))
    assert type(layer) is not nn.BatchNorm1d
    assert layer(torch.rand(4, 3)).shape == (4, 3)


def test_modes_and_hooks_and_shared_layers_are_kept():
    shared, calls = nn.BatchNorm1d(3), []
    module = nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm1d(3).eval())
    shared.register_forward_hook(lambda *_: calls.append("called"))
    sync_batchnorm(module)
    module(torch.rand(4, 3))
    assert module[0] is module[2]
    assert calls == ["called", "called"]
    assert [module[0].training, module[3].training] == [True, False]


def test_to_synchronise_twice_changes_nothing():
    layer = sync_batchnorm(nn.BatchNorm2d(3))
    kind = type(layer)
    assert type(sync_batchnorm(layer)) is kind
    assert type(sync_batchnorm(nn.SyncBatchNorm(3))) is nn.SyncBatchNorm


def test_a_synchronised_network_can_be_copied():
    layer = copy.deepcopy(sync_batchnorm(nn.BatchNorm1d(3)))
    assert layer.process_group is None
    assert layer(torch.rand(4, 3)).shape == (4, 3)


def test_a_copy_by_ema_shares_the_group(seen):
    for rank in MEMBERS:
        copied, online = seen[3][rank]["copy in group"]
        assert torch.equal(copied, online)


def test_layers_on_cuda_become_torchs_own():
    with FakeTensorMode():
        module = nn.Sequential(*(kind(3, device="cuda") for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)))
        norms = [*module, nn.BatchNorm1d(3, affine=False, device="cuda")]
        assert [type(sync_batchnorm(norm)) for norm in norms] == [nn.SyncBatchNorm] * 4
        assert all(norm.process_group is None for norm in norms)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_one_process_has_torchs_batchnorm():
    x = torch.randn(8, 3, 4, 4, device="cuda")
    layer = nn.BatchNorm2d(3, device="cuda")
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(sync_batchnorm(layer)(x), expected)


def test_no_process_group_is_needed():
    assert not distributed.is_initialized()
    target = EMA(sync_batchnorm(ProjectionHead(4, 3, 2)), 0.9)
    assert target(torch.rand(6, 4)).shape == (6, 2)
