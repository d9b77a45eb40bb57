"""The check of losses on several processes: it passes what is right, and says of what is wrong what it is."""

import time
from functools import partial
from types import SimpleNamespace

import _planted as planted
import pytest
import torch
from _bounds import normal
from cl_losses import (
    NTXentLoss,
    _diagnosis,
    byol_loss,
    cross_domain_loss,
    info_nce_loss,
    nt_xent_loss,
    sup_con_loss,
    testing,
)
from cl_losses._batch import make_batch
from cl_losses._diagnosis import differentiate
from cl_losses.testing import check_distributed
from torch import distributed, multiprocessing

SECONDS = 100
KINDS = ("even", "uneven", "copies")


LABELS, DOMAINS = torch.arange(12) % 4, torch.arange(12) % 3
# The losses, their inputs and the dimensions that are split; None for the default inputs.
LOSSES = {
    "nt_xent": (partial(nt_xent_loss, temperature=0.5), None, None),
    "nt_xent cold": (NTXentLoss(temperature=0.02), None, None),
    "info_nce": (partial(info_nce_loss, temperature=0.2, symmetric=True), None, None),
    "sup_con": (partial(sup_con_loss, temperature=0.3), [normal(2, 12, 8), LABELS], (1, 0)),
    "cross_domain": (partial(cross_domain_loss, temperature=0.3), [normal(12, 8), LABELS, DOMAINS], None),
    "cross_domain own": (
        partial(cross_domain_loss, temperature=0.3, unlabelled="own_domain"),
        [normal(2, 12, 8), torch.where(DOMAINS == 1, -1, LABELS), DOMAINS],
        (1, 0, 0),
    ),
    "right": (planted.right, None, None),
}
WRONG = {
    planted.local_negatives: "each process contrasts its own rows only; nothing is gathered",
    planted.in_wrong_order: "rows of other processes are in the wrong place",
    planted.detached_gather: "rows of other processes count in the value but get no gradient",
    planted.without_world_factor: "wrong by a factor of 1 / the number of processes",
    planted.with_world_factor_twice: "wrong by a factor of the number of processes",
}


def tasks() -> dict[str, testing._Task]:
    found = {
        name: testing._Task(loss, make_batch(inputs, dims, rows_at_least=4), (2,), KINDS)
        for name, (loss, inputs, dims) in LOSSES.items()
    }
    default = make_batch(None, None, rows_at_least=4)
    found["byol"] = testing._Task(byol_loss, default, (2,), KINDS)
    return found | {loss.__name__: testing._Task(loss, default, (2,), KINDS) for loss in WRONG}


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> dict[str, list]:
    """What two processes see of all tasks, one after the other: `check_distributed` would spawn anew for each."""
    folder = tmp_path_factory.mktemp("tasks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=planted.run_tasks, args=(rank, tasks(), folder)) for rank in range(2)]
    deadline = time.monotonic() + SECONDS
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert codes == [0, 0], [path.read_text() for path in folder.glob("*/error_*.txt")]
    return {
        name: [torch.load(folder / name / f"seen_{rank}.pt", weights_only=False) for rank in range(2)]
        for name in tasks()
    }


def compare(observed, name: str, kind: str, *, tolerance: float = 1e-10) -> float:
    task = tasks()[name]
    return _diagnosis.compare(task.loss_fn, task.batch, observed[name], 2, kind, tolerance)


@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_check_passes_a_loss_that_is_right(observed, name, kind):
    assert compare(observed, name, kind) < 1e-12


@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize(("loss", "what"), WRONG.items(), ids=[loss.__name__ for loss in WRONG])
def test_the_check_says_what_is_wrong(observed, loss, what, kind):
    with pytest.raises(AssertionError, match=f"On 2 processes with {kind} shares.*{what}"):
        compare(observed, loss.__name__, kind)


def test_the_check_passes_a_mean_over_own_rows_with_even_shares(observed):
    assert compare(observed, "byol", "even") < 1e-12


def test_the_check_refuses_a_mean_over_own_rows_with_uneven_shares(observed):
    with pytest.raises(AssertionError, match="averaging over processes does not weigh them by their rows"):
        compare(observed, "byol", "uneven")


def test_the_check_says_how_large_the_error_is_and_what_was_expected(observed):
    with pytest.raises(AssertionError, match=r"averaged gradient: norm (.*), expected (.*) ") as caught:
        compare(observed, "without_world_factor", "even")
    assert "relative error 5.0e-01, tolerance 1.0e-10" in str(caught.value)


def test_the_check_passes_what_is_within_its_tolerance(observed):
    assert compare(observed, "without_world_factor", "even", tolerance=0.6) == pytest.approx(0.5)


@pytest.mark.parametrize("loss", WRONG)
def test_check_distributed_refuses_what_is_wrong(observed, monkeypatch, loss):
    monkeypatch.setattr(testing, "_observe", lambda task, *, seconds: observed[task.loss_fn.__name__])
    with pytest.raises(AssertionError, match=WRONG[loss]):
        check_distributed(loss, world_sizes=(2,))


# With processes of its own


def test_check_distributed_passes_nt_xent():
    error = check_distributed(partial(nt_xent_loss, temperature=0.5), world_sizes=(1, 2), seconds=SECONDS)
    assert error < 1e-12


def test_check_distributed_passes_on_the_error_of_a_process():
    with pytest.raises(AssertionError, match="failed on process 1: of 2 with even shares") as caught:
        check_distributed(planted.raises_on_one, world_sizes=(2,), seconds=SECONDS)
    assert "RuntimeError: planted on process 1" in str(caught.value)


def test_check_distributed_ends_where_processes_wait_for_ever():
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=r"Processes \[.*1\] were still waiting after 6 s"):
        check_distributed(planted.waits_on_one, world_sizes=(2,), seconds=6)
    assert time.monotonic() - begin < 30
    assert not multiprocessing.active_children()


# Arguments


def test_check_distributed_refuses_a_lambda():
    with pytest.raises(TypeError, match=r"`loss_fn` must be a function of a module, .* so that other processes"):
        check_distributed(lambda z_a, z_b: nt_xent_loss(z_a, z_b, temperature=0.5))


def test_a_loss_that_is_no_scalar_is_refused():
    batch = make_batch(None, None, rows_at_least=4)
    with pytest.raises(ValueError, match=r"`loss_fn` must return a scalar, got shape \(12,\)"):
        differentiate(planted.of_each_row, batch.inputs, batch.weight)


@pytest.mark.parametrize(("uneven", "needed"), [(True, 9), (False, 3)])
def test_check_distributed_refuses_too_few_rows(uneven, needed):
    inputs = [normal(needed - 1, 4), normal(needed - 1, 4)]
    with pytest.raises(ValueError, match=rf"`inputs` must hold one number of rows, at least {needed}, got"):
        check_distributed(planted.right, inputs=inputs, uneven=uneven)


def test_check_distributed_refuses_inputs_of_different_numbers_of_rows():
    with pytest.raises(ValueError, match=r"`inputs` must hold one number of rows, .* got \[8, 9\]"):
        check_distributed(planted.right, inputs=[normal(8, 4), normal(9, 4)])


def test_check_distributed_refuses_dimensions_that_are_not_as_many_as_inputs():
    with pytest.raises(ValueError, match="`batch_dims` must be as many as `inputs`, at least 1, got 1 and 2"):
        check_distributed(planted.right, inputs=[normal(8, 4), normal(8, 4)], batch_dims=(0,))


def test_check_distributed_refuses_inputs_without_a_gradient():
    with pytest.raises(ValueError, match="`inputs` must hold a floating point tensor"):
        check_distributed(planted.right, inputs=[LABELS])


def test_check_distributed_refuses_a_process_that_is_one_of_several(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"must be called where torch.distributed is not initialised"):
            check_distributed(planted.right)
    finally:
        distributed.destroy_process_group()


# The shares


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_uneven_shares_differ_and_are_all_rows(world):
    shares = make_batch(None, None, rows_at_least=1).shares(world, "uneven")
    assert sum(shares) == 12
    assert len(set(shares)) == world
    assert min(shares) >= 1


def test_a_process_that_ends_without_a_result_is_named_and_one_that_aborts_after_it_is_not(tmp_path):
    aborted, finished = SimpleNamespace(exitcode=-6), SimpleNamespace(exitcode=0)
    (tmp_path / "seen_1.pt").touch()
    with pytest.raises(AssertionError, match="ended early: 0 with exit code -6\\."):
        testing._raise_failures(tmp_path, [aborted, finished], [], 1.0)
    (tmp_path / "seen_0.pt").touch()
    testing._raise_failures(tmp_path, [aborted, finished], [], 1.0)
