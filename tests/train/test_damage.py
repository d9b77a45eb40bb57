"""Checkpoints on bad disks, in bad hands, and of processes that die: nothing is lost, and nothing bad is loaded.

What breaks them is in benchmarks/fault_files.py, which counts how often it was survived.
"""

import errno
import hashlib
import os
from types import SimpleNamespace

import fault_files as files
import pytest
import torch
from cl_train import InputError, pretrain
from cl_train._history import History
from test_checkpoint import SETTINGS, data, names, simclr

quiet = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def test_a_file_that_was_cut_short_is_noticed_and_the_checkpoint_before_is_taken(tmp_path):
    assert files.truncated(tmp_path) == (16, 16)  # four files at 0, 1, 50 and 99 %


def test_a_file_that_is_missing_is_noticed_and_the_checkpoint_before_is_taken(tmp_path):
    assert files.deleted(tmp_path) == (9, 9)  # each of four, a folder in its place, all of them


def test_files_and_folders_that_are_no_checkpoints_change_nothing(tmp_path):
    assert files.strays(tmp_path) == (6, 6)


def test_each_of_1000_flipped_bits_is_noticed(tmp_path):
    assert files.flipped(tmp_path, count=1000) == (1000, 1000)


@quiet
def test_a_pickle_that_runs_code_is_not_executed_and_refused_in_place_of_any_file(tmp_path):
    executed, refused, cases = files.malicious(tmp_path)
    assert (executed, refused, cases) == (0, 16, 16)


def test_the_pickle_of_that_test_runs_code_where_it_is_loaded(tmp_path):
    torch.save(files._Mark(tmp_path / "executed"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "executed").exists()


@quiet
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path):
    trained, newest = files._two(tmp_path)
    torch.save(files._Mark(tmp_path / "executed"), newest / "optimizer.pt")
    files._forge(newest)
    with pytest.raises(InputError, match=f"^{newest} is not what a run writes: Weights only load failed"):
        trained.start()


def test_a_full_or_failing_disk_keeps_the_last_checkpoint_and_leaves_nothing(tmp_path):
    survived, cases = files.full_disk(tmp_path)
    assert (survived, cases >= 20) == (cases, True)


def test_a_death_before_any_call_of_the_file_system_leaves_a_checkpoint(tmp_path):
    for survived, calls in files.boundaries(tmp_path, by_kill=False).values():
        assert (survived, calls > 25) == (calls, True)


def test_the_calls_of_that_test_are_those_of_saving(tmp_path):
    seen = []
    trained = files.Trained(tmp_path)
    trained.save(1)
    with files.breaking(seen.append):
        trained.save(2)
    for name in ("mkdir", "open", "write", "fsync", "rename"):
        assert name in seen
    assert seen.count("write") == 4
    assert seen.count("fsync") == 6  # each file, the folder, the folder around it


class Alike(str):
    def __ne__(self, other):
        return False


def test_without_digests_flipped_bits_are_not_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: SimpleNamespace(hexdigest=Alike))
    noticed, cases = files.flipped(tmp_path, count=200)
    assert noticed < cases / 2  # those in the manifest, which is no JSON any more


# Whole runs


def test_a_run_that_cannot_save_says_so_in_a_line_and_goes_on_from_the_last_checkpoint(tmp_path, monkeypatch):
    def run():
        method = simclr()
        optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
        return pretrain(method, data(), out=tmp_path, optimizer=optimizer, **SETTINGS)

    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:  # in the second checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            InputError, match=r"^checkpoint .*step-00000004 cannot be written, .*No space left on device$"
        ):
            run()
    assert names(tmp_path / "checkpoints") == ["step-00000002"]
    assert run().steps == 6


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    history = History(tmp_path / "metrics.jsonl", step=0, per_epoch=2)
    history.add(step=1, loss=1.0)
    history.path = tmp_path / "missing" / "metrics.jsonl"
    with pytest.raises(OSError, match=r"metrics.jsonl cannot be written: .*No such file"):
        history.write()


def test_a_file_in_place_of_the_folder_of_checkpoints_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(InputError, match="Not a directory"):
        pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
