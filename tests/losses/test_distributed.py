"""Losses on 1 to 4 processes with different data on each, against one process with all of it."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import _cases as cases
import pytest
import torch
from _refusals import REFUSALS, two_views
from cl_losses import nt_xent_loss
from torch import Tensor

SECONDS = 240
TOLERANCE = 1e-12  # of the largest entry
WORLDS = list(cases.SHARES)
SEVERAL = [world for world in WORLDS if world > 1]
REDUCED = [name for name, case in cases.GATHERING.items() if not case.views]
OF_ROWS = [name for name, case in cases.GATHERING.items() if case.views]

Seen = dict[int, list[dict[Any, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    """By number of processes, what each of them saw; no process outlives this."""
    folder = tmp_path_factory.mktemp("seen")
    command = [sys.executable, str(Path(__file__).with_name("_worker.py")), str(folder)]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, error = launcher.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # the processes that it forked
        launcher.wait()
    assert launcher.returncode == 0, error
    ranks = [torch.load(folder / f"seen_{rank}.pt") for rank in range(max(WORLDS))]
    return {world: [ranks[rank][world] for rank in range(world)] for world in WORLDS}


@cache
def alone(name: str) -> dict[str, Any]:
    """What one process sees with all images."""
    case = {**cases.GATHERING, **cases.OWN}[name]
    return cases.differentiate(case, cases.batch(), cases.parameters())


def of(members: list[int], shares: list[int]) -> dict[str, Tensor]:
    """The images of some processes."""
    parts = [cases.share(cases.batch(), shares, rank) for rank in members]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def even(world: int) -> list[int]:
    return next(iter(cases.SHARES[world].values()))


def kinds(world: int) -> list[str]:
    return [*cases.SHARES[world], "small tiles"]


def shares_of(world: int, kind: str) -> list[int]:
    return list(cases.SHARES[world].values())[-1] if kind == "small tiles" else cases.SHARES[world][kind]


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest entry that is expected; absolute where that is 0."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype or not actual.isfinite().all():
        return torch.inf
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (scale if scale > 0 else 1.0)


def assert_grads(actual: dict[str, Tensor], expected: dict[str, Tensor], where: str, *, factor: float = 1) -> None:
    errors = {name: error(actual[name] * factor, grad) for name, grad in expected.items()}
    assert max(errors.values()) <= TOLERANCE, f"{where}: {errors}"


# As on one process


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", REDUCED)
def test_the_averaged_gradient_of_a_reduced_loss_is_that_of_one_process(seen, name, world):
    for kind in kinds(world):
        for result in seen[world]:
            assert_grads(result[name, kind]["grads"], alone(name)["grads"], kind)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", REDUCED)
def test_the_value_of_a_reduced_loss_is_that_of_one_process(seen, name, world):
    for kind in kinds(world):
        assert error(seen[world][0][name, kind]["value"], alone(name)["value"]) <= TOLERANCE, kind


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("name", REDUCED)
def test_all_processes_get_the_same_value_bit_for_bit(seen, name, world):
    for kind in kinds(world):
        assert len({result[name, kind]["value"].item() for result in seen[world]}) == 1, kind


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", OF_ROWS)
def test_the_averaged_gradient_of_weighted_rows_is_a_share_of_that_of_one_process(seen, name, world):
    for kind in kinds(world):
        for result in seen[world]:
            assert_grads(result[name, kind]["grads"], alone(name)["grads"], kind, factor=world)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", OF_ROWS)
def test_the_losses_of_rows_are_those_of_one_process(seen, name, world):
    for kind in kinds(world):
        together = torch.cat([result[name, kind]["value"] for result in seen[world]], dim=1)
        assert error(together, alone(name)["value"]) <= TOLERANCE, kind


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", cases.OWN)
def test_a_loss_of_own_rows_averages_to_that_of_one_process(seen, name, world):
    mean = torch.stack([result[name]["value"] for result in seen[world]]).mean()
    assert error(mean, alone(name)["value"]) <= TOLERANCE
    for result in seen[world]:
        assert_grads(result[name]["grads"], alone(name)["grads"], "even")


@pytest.mark.parametrize("world", WORLDS)
def test_metrics_are_those_of_one_process_and_the_same_everywhere(seen, world):
    expected = cases.METRICS(cases.batch(), cases.parameters())
    for kind in cases.SHARES[world]:
        for result in seen[world]:
            for name, actual, right in zip(expected._fields, result["metrics", kind], expected, strict=True):
                assert error(actual, right) <= TOLERANCE, f"{kind}: {name}"
                assert torch.equal(actual, seen[world][0]["metrics", kind][expected._fields.index(name)]), name


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", cases.COUNTS)
def test_numbers_of_positives_are_those_of_one_process(seen, name, world):
    expected = cases.COUNTS[name](cases.batch(), cases.parameters())
    for kind in cases.SHARES[world]:
        together = torch.cat([result["counts", kind][name] for result in seen[world]], dim=1)
        assert torch.equal(together, expected), kind


# Real DistributedDataParallel, and the compiler


@pytest.mark.parametrize("name", ["nt_xent", "nt_xent sum"])
def test_nt_xent_under_distributed_data_parallel_is_that_of_one_process(seen, name):
    for result in seen[2]:
        assert error(result[name, "wrapped"]["value"], alone(name)["value"]) <= TOLERANCE
        assert_grads(result[name, "wrapped"]["grads"], {"weight": alone(name)["grads"]["weight"]}, name)


def test_byol_under_distributed_data_parallel_has_the_gradient_of_one_process(seen):
    for result in seen[2]:
        assert_grads(result["byol", "wrapped"]["grads"], {"weight": alone("byol")["grads"]["weight"]}, "even")


def test_compiled_nt_xent_on_two_processes_is_the_eager_one(seen):
    for result in seen[2]:
        for actual, expected in zip(result["compiled"], result["eager"], strict=True):
            assert error(actual, expected) <= TOLERANCE


# Who is gathered from


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", cases.LOCAL)
def test_without_gather_a_loss_is_each_process_own(seen, name, world):
    for rank, result in enumerate(seen[world]):
        given = cases.share(cases.batch(), even(world), rank)
        expected = cases.differentiate(cases.GATHERING[name], given, cases.parameters())
        assert error(result[name, "local"]["value"], expected["value"]) <= TOLERANCE, rank
        assert_grads(result[name, "local"]["grads"], expected["grads"], str(rank))


@pytest.mark.parametrize("world", WORLDS)
def test_without_gather_metrics_and_counts_are_each_process_own(seen, world):
    for rank, result in enumerate(seen[world]):
        given = cases.share(cases.batch(), even(world), rank)
        for actual, expected in zip(result["metrics", "local"], cases.METRICS(given, cases.parameters()), strict=True):
            assert error(actual, expected) <= TOLERANCE, rank
        for name, count in cases.COUNTS.items():
            assert torch.equal(result["counts", "local"][name], count(given, cases.parameters())), name


@pytest.mark.parametrize("world", WORLDS)
def test_without_gather_no_process_waits_for_another(seen, world):
    for result in seen[world]:
        assert not result["local collectives"]


@pytest.mark.parametrize("world", cases.MEMBERS)
@pytest.mark.parametrize("name", cases.GATHERING)
def test_a_group_gathers_from_its_members_only(seen, name, world):
    members, shares = cases.MEMBERS[world], cases.SHARES[world]["uneven"]
    case = cases.GATHERING[name]
    expected = cases.differentiate(case, of(members, shares), cases.parameters())
    values = [seen[world][rank][name, "group"]["value"] for rank in members]
    for value in [torch.cat(values, dim=1)] if case.views else values:
        assert error(value, expected["value"]) <= TOLERANCE
    for rank in members:
        factor = len(members) if case.views else 1
        assert_grads(seen[world][rank][name, "group"]["grads"], expected["grads"], str(rank), factor=factor)


@pytest.mark.parametrize("world", cases.MEMBERS)
def test_metrics_and_counts_of_a_group_are_of_its_members_only(seen, world):
    members, shares = cases.MEMBERS[world], cases.SHARES[world]["uneven"]
    given = of(members, shares)
    for rank in members:
        for actual, expected in zip(
            seen[world][rank]["metrics", "group"], cases.METRICS(given, cases.parameters()), strict=True
        ):
            assert error(actual, expected) <= TOLERANCE
    for name, count in cases.COUNTS.items():
        together = torch.cat([seen[world][rank]["counts", "group"][name] for rank in members], dim=1)
        assert torch.equal(together, count(given, cases.parameters())), name


# How often processes wait for each other


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_forward_of_nt_xent_exchanges_sizes_rows_and_sums(seen, reduction, world):
    for result in seen[world]:
        assert result["collectives", reduction]["forward"] == {"all_gather": 3}


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize(("reduction", "calls"), [("mean", {}), ("sum", {}), ("none", {"all_gather": 1})])
def test_the_backward_of_nt_xent_exchanges_the_gradients_of_rows_or_nothing(seen, reduction, calls, world):
    for result in seen[world]:
        assert result["collectives", reduction]["backward"] == calls


# A process that disagrees: all of them raise, and go on


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_one_process_refuses_all_refuse(seen, name, world):
    refusal = REFUSALS[name]
    for rank, result in enumerate(seen[world]):
        last = rank == world - 1
        kind, message = result[name, "refused"]
        assert kind == (refusal.error if last else ValueError).__name__, f"process {rank}: {kind} {message}"
        assert re.search(refusal.last if last else refusal.others, message), f"process {rank}: {message}"


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", REFUSALS)
def test_after_a_refusal_the_next_loss_is_right(seen, name, world):
    expected = nt_xent_loss(*(torch.cat([z] * world) for z in two_views()), temperature=0.5)
    for result in seen[world]:
        assert error(result[name, "next"], expected) <= TOLERANCE


# Numbers worked out apart from this code: the golden vectors on two processes


@pytest.mark.parametrize("rank", [0, 1])
def test_nt_xent_on_two_processes_gives_the_golden_value(seen, rank):
    assert seen[2][rank]["golden"]["value"].item() == pytest.approx(2.268388409826168, abs=1e-13)


@pytest.mark.parametrize(("rank", "mean"), [(0, 2.58929080869289), (1, 1.9474860109594454)])
def test_nt_xent_rows_of_a_process_average_to_the_golden_value(seen, rank, mean):
    assert seen[2][rank]["golden rows"]["value"].mean().item() == pytest.approx(mean, abs=1e-13)


@pytest.mark.parametrize(("rank", "value"), [(0, 1.6284453303716182), (1, 1.1048071603917036)])
def test_nt_xent_without_gather_gives_the_golden_value(seen, rank, value):
    assert seen[2][rank]["golden local"]["value"].item() == pytest.approx(value, abs=1e-13)


def test_a_gather_without_gradient_is_wrong_by_the_golden_amount(seen):
    right, wrong = (
        torch.cat([result[name]["grad"] for result in seen[2]], dim=1) / 2 for name in ("golden", "golden detached")
    )
    assert right.norm().item() == pytest.approx(0.6308691204680, abs=1e-11)
    assert (wrong.norm() / right.norm()).item() == pytest.approx(0.4926, abs=1e-4)
    cosine = torch.cosine_similarity(wrong.flatten(), right.flatten(), dim=0)
    assert cosine.item() == pytest.approx(0.99515, abs=1e-5)


# The tests above can fail: bugs that many have written, in a dense loss


@pytest.mark.parametrize("world", SEVERAL)
def test_a_dense_loss_with_a_gather_that_sums_gradients_passes(seen, world):
    for result in seen[world]:
        assert error(result["right", "planted"]["value"], alone("nt_xent")["value"]) <= TOLERANCE
        assert_grads(result["right", "planted"]["grads"], alone("nt_xent")["grads"], "even")


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("bug", ["detached_gather", "without_world_factor"])
def test_a_bug_in_the_gradient_is_noticed_though_the_value_is_right(seen, bug, world):
    for result in seen[world]:
        assert error(result[bug, "planted"]["value"], alone("nt_xent")["value"]) <= TOLERANCE
        with pytest.raises(AssertionError, match=r"even: \{'weight': 0"):
            assert_grads(result[bug, "planted"]["grads"], alone("nt_xent")["grads"], "even")


@pytest.mark.parametrize("world", SEVERAL)
@pytest.mark.parametrize("bug", ["local_negatives", "in_wrong_order"])
def test_a_bug_in_the_value_is_noticed(seen, bug, world):
    for result in seen[world]:
        assert error(result[bug, "planted"]["value"], alone("nt_xent")["value"]) > 0.01
