"""The folder of a run: one run at a time."""

import os
import platform
import re

import pytest
import tiny
from cl_train import InputError
from cl_train._run_folder import locked, make_run_folder


def in_use(out):
    who = f"process {os.getpid()} on {platform.node()}"
    message = f"`out` must be the folder of one run at a time, {out} is in use by {who}."
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def test_a_second_run_on_a_folder_is_refused_and_told_by_whom_it_is_used(tmp_path):
    with locked(tmp_path), in_use(tmp_path):
        tiny.run(tmp_path)


def test_a_refused_run_writes_nothing(tmp_path):
    with locked(tmp_path):
        before = sorted(path.name for path in tmp_path.iterdir())
        with in_use(tmp_path):
            tiny.run(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_refused_run_leaves_the_folder_to_the_first(tmp_path):
    with locked(tmp_path):
        for _ in range(2):
            with in_use(tmp_path), locked(tmp_path):
                pass


def test_a_folder_is_free_again_after_a_run_and_after_an_error(tmp_path):
    trained = tiny.method()
    trained.before_step = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tiny.run(tmp_path, trained=trained)
    assert tiny.run(tmp_path, max_steps=1).steps == 1
    assert not list(tmp_path.glob(".*"))


def test_a_second_run_that_finds_a_lock_nobody_holds_takes_it(tmp_path):
    (tmp_path / ".lock").touch()  # as a process leaves them that is killed
    (tmp_path / ".lock.holder").write_text("process 1 on elsewhere")
    assert tiny.run(tmp_path, max_steps=1).steps == 1


def test_the_lock_is_gone_before_it_is_given_back(tmp_path, monkeypatch):
    from filelock import FileLock

    release, there = FileLock.release, []

    def watched(self, *args, **kwargs):
        there.append((tmp_path / ".lock").exists())
        release(self, *args, **kwargs)

    monkeypatch.setattr(FileLock, "release", watched)
    with locked(tmp_path):
        pass
    assert there[0] is False  # else another run may hold it when it is removed, and a third one make it anew


def test_trying_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    make_run_folder(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
