"""Whole runs on 2 and 3 processes against the same runs on one: weights, logs and scores."""

import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cl_train import InputError
from torch.testing import assert_close

WORKER = Path(__file__).with_name("_worker.py")
SECONDS = 120
WORLDS = [2, 3]
BYOL = ["byol", "byol in chunks", "byol batchnorm"]


def spawn(folder: Path) -> dict[int, list[dict]]:
    """What every process of every world has at the end; none outlives this call."""
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), *map(str, WORLDS)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        errors = worker.communicate(timeout=SECONDS)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # the forked ones too
        worker.wait()
        worker.stderr.close()
    assert worker.returncode == 0, f"{worker.returncode} processes failed: {errors}"
    return {
        world: [torch.load(folder / f"world {world}" / f"result_{rank}.pt") for rank in range(world)]
        for world in WORLDS
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def seen(folders) -> dict[int, list[dict]]:
    return spawn(folders)


@pytest.fixture(scope="module")
def alone(folders) -> dict:
    """The same runs in this process."""
    return runpy.run_path(str(WORKER))["observe"](folders / "alone")


def gap(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[name] - expected[name]).abs().max().item() for name in expected)


@pytest.mark.parametrize("world", WORLDS)
def test_each_process_is_one_of_its_world(seen, world):
    for result in seen[world]:
        line = f"world={world} backend=gloo device=cpu(:0)? precision=no threads=1"
        assert re.fullmatch(line, result["describe"])


@pytest.mark.parametrize("case", ["sgd", "lars", "resumed", *BYOL])
@pytest.mark.parametrize("world", WORLDS)
def test_a_run_on_many_processes_has_the_weights_of_one(seen, alone, world, case):
    for result in seen[world]:
        assert gap(result[case]["weights"], alone[case]["weights"]) < 1e-9


@pytest.mark.parametrize("case", ["sgd", "lars", "without gather", *BYOL])
@pytest.mark.parametrize("world", WORLDS)
def test_all_processes_have_the_same_weights_bit_for_bit(seen, world, case):
    for result in seen[world][1:]:
        assert gap(result[case]["weights"], seen[world][0][case]["weights"]) == 0


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_that_was_begun_on_many_processes_can_be_finished_on_one(seen, alone, folders, tmp_path, world):
    begun = folders / f"world {world}" / "sgd" / "checkpoints" / "step-00000003"
    finished = runpy.run_path(str(WORKER))["run"](tmp_path, seed=6, resume=begun, may_change={"processes"})
    assert gap(finished["weights"], alone["sgd"]["weights"]) < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_that_was_begun_on_many_processes_is_not_finished_on_one_unasked(seen, folders, tmp_path, world):
    begun = folders / f"world {world}" / "sgd" / "checkpoints" / "step-00000003"
    message = f"{begun} is of a run with processes={world}, this one has processes=1: give that value,"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        runpy.run_path(str(WORKER))["run"](tmp_path, seed=6, resume=begun)


@pytest.mark.parametrize("case", ["sgd", "lars"])
def test_the_runs_went_somewhere(alone, case):
    start = runpy.run_path(str(WORKER))["method"]().state_dict()
    assert gap(alone[case]["weights"], start) > 1e-2


@pytest.mark.parametrize("case", ["sgd", "lars", "resumed", *BYOL])
@pytest.mark.parametrize("world", WORLDS)
def test_a_run_on_many_processes_logs_what_one_does(seen, alone, world, case):
    for result in seen[world]:
        assert len(result[case]["history"]) == 5
        for found, expected in zip(result[case]["history"], alone[case]["history"], strict=True):
            assert found.keys() == expected.keys()
            for name in expected.keys() - {"contrast_top1"}:  # which each process takes among its own images
                assert found[name] == pytest.approx(expected[name], rel=1e-6)  # losses are averaged in float32


@pytest.mark.parametrize("world", WORLDS)
def test_one_file_has_the_log_of_all_processes(seen, folders, world):
    log = folders / f"world {world}" / "sgd" / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("world", WORLDS)
def test_all_processes_leave_with_the_running_statistics_of_the_main_one(seen, world):
    assert any("running_mean" in name for name in seen[world][0]["batchnorm"]["weights"])
    for result in seen[world][1:]:
        assert gap(result["batchnorm"]["weights"], seen[world][0]["batchnorm"]["weights"]) == 0


@pytest.mark.parametrize("world", WORLDS)
def test_processes_that_do_not_see_the_checkpoint_are_refused(seen, folders, world):
    checkpoint = folders / f"world {world}" / "own" / "checkpoints" / "step-00000002"
    blind = list(range(1, world))
    for result in seen[world]:
        assert (
            result["own folders"]
            == f"`out` must be a folder that all processes share, {blind} do not see {checkpoint}."
        )


@pytest.mark.parametrize("world", WORLDS)
def test_processes_with_other_labels_are_refused(seen, alone, world):
    message = "`dataset` and `sampler` must give all processes the same labels and batches, they differ."
    assert [result["other labels"] for result in seen[world]] == [message] * world
    assert alone["other labels"] == "nothing"


@pytest.mark.parametrize("world", WORLDS)
def test_linear_eval_gives_the_scores_of_one_process_on_each(seen, alone, world):
    for result in seen[world]:
        assert result["linear eval"] == alone["linear eval"]


def test_the_scores_to_compare_are_neither_none_nor_all(alone):
    assert 0.1 < alone["linear eval"]["top1"] < 0.9


@pytest.mark.parametrize("world", WORLDS)
def test_every_process_has_all_features(seen, alone, world):
    for result in seen[world]:
        assert_close(result["features"], alone["features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", BYOL)
def test_byols_target_went_somewhere_and_stays_behind(alone, case):
    found = alone[case]["weights"]
    start = runpy.run_path(str(WORKER))["bootstrap"]().state_dict()
    parameters = [name for name in found if name.startswith("target.") and name.endswith(("weight", "bias"))]
    assert len(parameters) == 8
    assert gap({name: found[name] for name in parameters}, {name: start[name] for name in parameters}) > 1e-2
    online = {name: name.removeprefix("target.module.").replace("0.", "encoder.", 1) for name in parameters}
    online = {name: re.sub(r"^1\.", "projector.", place) for name, place in online.items()}
    assert gap({name: found[name] for name in parameters}, {name: found[online[name]] for name in parameters}) > 1e-2
    assert found["target.step"] == 5


@pytest.mark.parametrize("world", WORLDS)
def test_byol_without_batchnorm_is_the_same_in_chunks(seen, alone, world):
    for result in [alone, *seen[world]]:
        assert gap(result["byol in chunks"]["weights"], alone["byol"]["weights"]) < 1e-9


# Domains


@pytest.mark.parametrize("case", ["whole", "chunks"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_run_across_domains_on_many_processes_has_the_weights_and_prototypes_of_one(seen, alone, world, case):
    expected = alone["domains"]["whole"]["weights"]
    assert expected["prototypes.seen"].tolist() == [[True, True, True], [True, True, False]]
    for result in seen[world]:
        assert gap(_numbers(result["domains"][case]["weights"]), _numbers(expected)) < 1e-9


@pytest.mark.parametrize("case", ["whole", "chunks"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_run_across_domains_has_the_same_weights_and_prototypes_on_all_processes_bit_for_bit(seen, world, case):
    first = _numbers(seen[world][0]["domains"][case]["weights"])
    for result in seen[world][1:]:
        assert gap(_numbers(result["domains"][case]["weights"]), first) == 0


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_across_domains_on_many_processes_logs_what_one_does(seen, alone, world):
    """Also the shares of labelled images, of which processes have unequally many."""
    expected = alone["domains"]["whole"]["history"]
    assert len(expected) == 5
    assert all(0 < entry["partners"] < 1 for entry in expected)
    for result in seen[world]:
        for found, entry in zip(result["domains"]["whole"]["history"], expected, strict=True):
            assert found == pytest.approx(entry, rel=1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_prototypes_of_each_processs_own_rows_would_be_noticed(seen, alone, world):
    expected = _numbers(alone["domains"]["whole"]["weights"])
    assert gap(_numbers(alone["domains"]["own prototypes"]["weights"]), expected) == 0
    assert gap(_numbers(seen[world][0]["domains"]["own prototypes"]["weights"]), expected) > 1e-3


def _numbers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With bools as numbers, so that they have a difference."""
    return {name: value.double() for name, value in weights.items()}


# The tests above can fail: negatives of each process's own share only, the bug that a lone process cannot have


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_without_gathered_negatives_is_noticed(seen, alone, world):
    assert gap(alone["without gather"]["weights"], alone["sgd"]["weights"]) == 0
    assert gap(seen[world][0]["without gather"]["weights"], alone["sgd"]["weights"]) > 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_without_gathered_negatives_logs_other_losses(seen, alone, world):
    found, expected = (r["without gather"]["history"][0]["loss"] for r in (seen[world][0], alone))
    assert found < expected - 0.1  # fewer candidates, less to choose from


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_without_gathered_negatives_is_named_on_the_main_process(seen, alone, world):
    (found,) = seen[world][0]["without gather"]["findings"]
    losses = r"the processes' losses are \d\.\d+ to \d\.\d+ \(healthy: the same on all\) at epoch 1"
    assert re.match(f"health: local negatives: {losses}; each process has only its own images", found)
    assert [result["without gather"]["findings"] for result in [alone, *seen[world][1:]]] == [[]] * world


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_without_gathered_negatives_is_ended_on_all_processes_where_asked(seen, alone, folders, world):
    assert alone["stopped"] == "nothing"
    for result in seen[world]:
        assert result["stopped"] == seen[world][0]["stopped"]
        assert result["stopped"].startswith("3 health: local negatives: ")
    assert (folders / f"world {world}" / "stopped" / "checkpoints" / "step-00000003" / "state.json").is_file()


@pytest.mark.parametrize("case", ["sgd", "lars", "resumed", "batchnorm", *BYOL])
@pytest.mark.parametrize("world", WORLDS)
def test_a_run_that_is_well_on_many_processes_is_left_alone(seen, alone, world, case):
    assert [result[case]["findings"] for result in [alone, *seen[world]]] == [[]] * (world + 1)


@pytest.mark.parametrize("world", WORLDS)
def test_20_steps_with_synchronised_batchnorm_are_those_of_one_process(seen, alone, world):
    expected = alone["norms"]["synchronised"]
    for result in seen[world]:
        assert gap(result["norms"]["synchronised"], expected) < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_processes_without_synchronised_batchnorm_are_as_many_chunks_of_one(seen, alone, world):
    expected = alone["norms"][f"{world} chunks"]
    for result in seen[world]:
        assert gap(result["norms"]["local"], expected) < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_global_statistics_on_many_processes_are_those_of_the_whole_batch(seen, alone, world):
    expected = alone["norms"]["whole"]
    for result in seen[world]:
        assert gap(result["norms"]["global"], expected) < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_whose_statistics_batchnorm_uses_makes_a_difference(seen, alone, world):
    expected = alone["norms"]["whole"]
    for kind in ("local", "synchronised chunks", "parts"):
        assert gap(seen[world][0]["norms"][kind], expected) > 1e-3, kind


# Evaluations that train


@pytest.mark.parametrize("case", ["fine-tuned", "distilled"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_classifier_of_many_processes_is_that_of_one(seen, alone, world, case):
    for result in seen[world]:
        assert gap(result["tuned"][case]["weights"], alone["tuned"][case]["weights"]) < 1e-9
        assert result["tuned"][case]["scores"] == alone["tuned"][case]["scores"]


@pytest.mark.parametrize("case", ["fine-tuned", "distilled"])
def test_the_classifiers_to_compare_are_neither_perfect_nor_hopeless(alone, case):
    assert 0.1 < alone["tuned"][case]["scores"]["top1"] < 0.9
    assert alone["tuned"][case]["scores"]["images"] == 301


@pytest.mark.parametrize("world", WORLDS)
def test_a_process_without_test_images_has_the_scores_of_all(seen, alone, world):
    assert alone["tuned"]["few test images"]["images"] == 2
    for result in seen[world]:
        assert result["tuned"]["few test images"] == alone["tuned"]["few test images"]


@pytest.mark.parametrize("world", WORLDS)
def test_too_many_bad_images_end_an_evaluation_on_all_processes(seen, alone, world):
    for result in [*seen[world], alone]:
        training, test, one = result["tuned"]["bad images"]
        assert re.match(r"`max_bad_images` is 0\.05 of all, 3 of 24 could not be read; they are in", training)
        assert re.match(r"`max_bad_images` is 0\.05 of all, 3 of 24 test images could not be read, such as", test)
        assert re.match(r"`max_bad_images` is 0 of all, 3 of 24 test images could not be read, such as .*03\.png", one)
