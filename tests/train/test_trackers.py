"""The log elsewhere: every entry once, whatever happens in between, and nothing begun that cannot go on."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, InputError, SimCLR, pretrain
from cl_train._trackers import Trackers, check_trackers, flatten
from torch import nn

CONFIG = {"lr": 0.3, "groups": [{"decay": 0.0}], "data": None}


def entry(step: int) -> dict[str, float]:
    return {"step": step, "epoch": step / 10, "loss": 1 / step}


def log(*steps: int) -> list[dict[str, float]]:
    return [entry(step) for step in steps]


def send(names: list[str], out: Path, *steps: int, after: list[dict] = (), config: dict = CONFIG) -> None:
    """A run from the last entry of `after` on, which adds entries of `steps`."""
    trackers = Trackers(names, out=out, config=config, step=after[-1]["step"] if after else 0, entries=after)
    for step in steps:
        trackers.add(entry(step))
    trackers.close()


class Fake(types.ModuleType):
    """wandb or trackio as Accelerate uses them: notes what it is told."""

    __file__ = "installed"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started, self.logged, self.finished = [], [], 0
        self.configs = []
        self.config = types.SimpleNamespace(update=lambda values, allow_val_change: self.configs.append(values))

    def init(self, **arguments):
        self.started.append(arguments)
        return self

    def log(self, values, step, **arguments):
        self.logged.append((self.started[-1]["name"], step, values, arguments))

    def finish(self):
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def fake(request, monkeypatch) -> Fake:
    PartialState(cpu=True)
    module = Fake(request.param)
    module.__spec__ = types.SimpleNamespace(origin="installed")
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def steps_of(fake: Fake) -> list[int]:
    return [step for _, step, _, _ in fake.logged]


# What is sent


def test_an_entry_is_sent_without_its_step_at_its_step(fake, tmp_path):
    send([fake.__name__], tmp_path, 10, 20)
    sent = [(step, values) for _, step, values, _ in fake.logged]
    assert sent == [(10, {"epoch": 1.0, "loss": 0.1}), (20, {"epoch": 2.0, "loss": 0.05})]


def test_settings_are_sent_once_as_plain_values(fake, tmp_path):
    send([fake.__name__], tmp_path, 10)
    send([fake.__name__], tmp_path, 20, after=log(10))
    assert fake.configs == [{"lr": 0.3, "groups.0.decay": 0.0, "data": "None"}]


def test_a_run_that_goes_on_is_the_same_one_there(fake, tmp_path):
    send([fake.__name__], tmp_path, 10)
    send([fake.__name__], tmp_path, 20, after=log(10))
    first, second = fake.started
    assert first == second
    assert first["resume"] == "allow"


def test_what_a_run_repeats_after_its_death_is_not_sent_again(fake, tmp_path):
    send([fake.__name__], tmp_path, 10, 20, 30)
    send([fake.__name__], tmp_path, 20, 30, 40, after=log(10))
    assert steps_of(fake) == [10, 20, 30, 40]


def test_a_death_before_the_first_entry_is_survived(fake, tmp_path):
    Trackers([fake.__name__], out=tmp_path, config=CONFIG, step=0, entries=[]).close()
    Trackers([fake.__name__], out=tmp_path, config=CONFIG, step=5, entries=[]).close()
    assert fake.started[0] == fake.started[1]


def test_a_tracker_that_joins_later_is_sent_the_whole_log(fake, tmp_path):
    send([], tmp_path, 10, 20)
    send([fake.__name__], tmp_path, 30, after=log(10, 20))
    assert steps_of(fake) == [10, 20, 30]
    assert len(fake.configs) == 1


def test_a_tracker_that_was_left_out_for_a_while_is_sent_what_it_missed(fake, tmp_path):
    send([fake.__name__], tmp_path, 10)
    send([], tmp_path, 20, after=log(10))
    send([fake.__name__], tmp_path, 30, after=log(10, 20))
    assert steps_of(fake) == [10, 20, 30]
    assert fake.started[0] == fake.started[1]


def test_a_run_that_begins_anew_is_another_one_there(fake, tmp_path):
    send([fake.__name__], tmp_path, 10, 20)
    send([fake.__name__], tmp_path, 10)
    assert fake.started[0]["name"] != fake.started[1]["name"]
    assert steps_of(fake) == [10, 20, 10]


def test_a_run_that_goes_back_with_other_settings_is_another_one_there(fake, tmp_path):
    send([fake.__name__], tmp_path, 10, 20, 30)
    send([fake.__name__], tmp_path, 20, after=log(10), config=CONFIG | {"lr": 0.1})
    names = [name for name, _, _, _ in fake.logged]
    assert len(set(names)) == 2
    assert steps_of(fake) == [10, 20, 30, 10, 20]
    assert [config["lr"] for config in fake.configs] == [0.3, 0.1]


def test_a_run_that_goes_on_from_its_end_with_other_settings_is_the_same_one_there(fake, tmp_path):
    send([fake.__name__], tmp_path, 10)
    send([fake.__name__], tmp_path, 20, after=log(10), config=CONFIG | {"workers": 3})
    assert fake.started[0] == fake.started[1]


def test_a_tracker_named_twice_is_sent_everything_once(fake, tmp_path):
    send([fake.__name__] * 2, tmp_path, 10)
    assert steps_of(fake) == [10]
    assert len(fake.started) == fake.finished == 1


def test_no_tracker_leaves_no_file(tmp_path):
    send([], tmp_path, 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fake", ["wandb"], indirect=True)
def test_wandb_keeps_its_files_in_the_runs_folder(fake, tmp_path):
    send(["wandb"], tmp_path, 10)
    assert fake.started[0]["dir"] == str(tmp_path)
    assert fake.started[0]["id"] == fake.started[0]["name"]


@pytest.mark.parametrize("fake", ["wandb"], indirect=True)
@pytest.mark.parametrize(("variable", "project"), [(None, "cl-train"), ("mine", "mine")])
def test_wandb_has_the_project_of_its_own_variable(fake, tmp_path, monkeypatch, variable, project):
    if variable is not None:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    send(["wandb"], tmp_path, 10)
    assert fake.started[0]["project"] == project


@pytest.mark.parametrize("fake", ["wandb"], indirect=True)
def test_wandb_is_told_not_to_hold_a_step_back(fake, tmp_path):
    send(["wandb"], tmp_path, 10)
    assert fake.logged[0][3] == {"commit": True}


@pytest.mark.parametrize(
    ("config", "flat"),
    [
        ({}, {}),
        ({"a": 1, "b": 0.5, "c": True, "d": "x"}, {"a": 1, "b": 0.5, "c": True, "d": "x"}),
        ({"a": None, "b": Path("x/y")}, {"a": "None", "b": "x/y"}),
        ({"a": {"b": {"c": 1}, 2: 3}}, {"a.b.c": 1, "a.2": 3}),
        ({"a": [1, {"b": 2}], "c": (), "d": ("x",)}, {"a.0": 1, "a.1.b": 2, "d.0": "x"}),
    ],
)
def test_settings_are_flattened(config, flat):
    assert flatten(config) == flat


# What is refused


def test_a_tracker_that_does_not_exist_is_refused():
    message = "`trackers` must be of 'tensorboard', 'wandb', 'trackio', got 'mlflow'."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_trackers(["tensorboard", "mlflow"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    message = f"`trackers` asks for {name!r}, which is not installed: pip install 'cl-train[{name}]'."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_trackers([name])


def test_a_folder_that_wandb_left_is_not_wandb(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InputError, match="'wandb', which is not installed"):
        check_trackers(["wandb"])


# Runs


class Net(nn.Module):
    feature_dim = 3

    def forward(self, images):
        return images.mean((2, 3))


SETTINGS = {"epochs": 3, "batch_size": 8, "warmup_epochs": 1, "log_every": 1, "workers": 0, "mixed_precision": "no"}


def run(out: Path, **changes):
    """4 steps in an epoch, 12 in all."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (34, 3, 8, 8), dtype=torch.uint8)
    method = SimCLR(Net(), nn.Linear(3, 2), SimCLRAugment(8), NTXentLoss(temperature=0.5), num_classes=None)
    return pretrain(method, ArrayDataset(images), out=out, progress=False, **SETTINGS | changes)


def scalars(out: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """What TensorBoard shows of each run: (step, value) of each figure."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in sorted((out / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder)).Reload()
        found[folder.name] = {
            name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]
        }
    return found


def test_tensorboard_shows_the_log_of_a_run(tmp_path):
    history = run(tmp_path, trackers=["tensorboard"]).history
    (shown,) = scalars(tmp_path).values()
    assert shown.keys() == set().union(*history) - {"step"}
    for name, points in shown.items():
        having = [entry for entry in history if name in entry]  # figures of health are of the ends of epochs
        assert [step for step, _ in points] == [entry["step"] for entry in having]
        assert [value for _, value in points] == pytest.approx([entry[name] for entry in having], rel=1e-6)
    assert [step for step, _ in shown["loss"]] == list(range(1, 13))


def test_tensorboard_shows_each_step_once_after_a_restart(tmp_path):
    run(tmp_path, trackers=["tensorboard"], max_steps=6, checkpoint_every=4)
    for checkpoint in (tmp_path / "checkpoints").glob("step-*6"):  # as if it had died before this one
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    history = run(tmp_path, trackers=["tensorboard"]).history
    (shown,) = scalars(tmp_path).values()
    assert [step for step, _ in shown["loss"]] == list(range(1, 13))
    assert [value for _, value in shown["loss"]] == pytest.approx([entry["loss"] for entry in history], rel=1e-6)


def test_tensorboard_has_the_settings_once(tmp_path):
    run(tmp_path, trackers=["tensorboard"], max_steps=6, config={"lr": 0.3, "preset": "tiny"})
    run(tmp_path, trackers=["tensorboard"], config={"lr": 0.3, "preset": "tiny"})
    (file,) = (tmp_path / "tensorboard").rglob("hparams.yml")
    lines = file.read_text().splitlines()
    for line in ("lr: 0.3", "preset: tiny", "batch_size: 8", "optimizer: LARS", "optimizer_groups.0.momentum: 0.9"):
        assert line in lines


def test_a_finished_run_starts_no_tracker(fake, tmp_path):
    run(tmp_path, trackers=[fake.__name__])
    run(tmp_path, trackers=[fake.__name__])
    assert len(fake.started) == 1


def test_a_tracker_is_closed_when_the_run_ends(fake, tmp_path):
    run(tmp_path, trackers=[fake.__name__], max_steps=2)
    assert fake.finished == 1


def test_a_tracker_is_closed_when_the_run_raises(fake, tmp_path, monkeypatch):
    def fail(self, images):
        raise RuntimeError("a fault")

    monkeypatch.setattr(Net, "forward", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        run(tmp_path, trackers=[fake.__name__])
    assert fake.finished == 1


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match="'trackio', which is not installed"):
        run(tmp_path / "out", trackers=["trackio"])
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_does_not_start_leaves_no_other_open(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "log", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        send([fake.__name__], tmp_path, after=log(10))
    assert fake.finished == 1


def test_what_has_been_sent_is_known_after_a_death_at_any_time(fake, tmp_path):
    trackers = Trackers([fake.__name__], out=tmp_path, config=CONFIG, step=0, entries=[])
    trackers.add(entry(10))
    assert json.loads((tmp_path / "trackers.json").read_text())[fake.__name__]["step"] == 10
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_note_of_what_was_sent_that_a_power_cut_damaged_begins_a_new_run_there(fake, tmp_path, content):
    send([fake.__name__], tmp_path, 10)
    (tmp_path / "trackers.json").write_text(content)
    send([fake.__name__], tmp_path, 20, after=log(10))
    assert json.loads((tmp_path / "trackers.json").read_text())[fake.__name__]["step"] == 20
