"""Checkpoints: there whole or not at all, found again, and refused where they do not fit."""

import hashlib
import json
import math
import os
import re
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from cl_augment import RandomResizedCropFlip, SimCLRAugment, TwoViews
from cl_losses import NTXentLoss
from cl_train import LARS, ArrayDataset, InputError, SimCLR, lars_groups, make_accelerator, pretrain
from cl_train import _checkpoint_folder as folders
from cl_train import _start as starting
from cl_train._checkpoint import damage, load_checkpoint, read_state, save_checkpoint
from cl_train._checkpoint_folder import find_checkpoint, list_checkpoints
from cl_train._run_folder import locked
from torch import nn

SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "warmup_epochs": 0,
    "log_every": 1,
    "workers": 0,
    "mixed_precision": "no",
    "progress": False,
}


FILES = ["manifest.json", "method.safetensors", "optimizer.pt", "state.json"]


class Net(nn.Module):
    feature_dim = 6

    def __init__(self, width=6):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)

    def forward(self, images):
        return torch.relu(self.bn(self.conv(images))).mean((2, 3))


def data(n=16) -> ArrayDataset:
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(images)


def simclr(*, seed=5, width=4, augment=None) -> SimCLR:
    torch.manual_seed(seed)
    return SimCLR(Net(), nn.Linear(6, width), augment or SimCLRAugment(8), NTXentLoss(temperature=0.5))


def run(out, *, method=None, dataset=None, **changes):
    method = method or simclr()
    optimizer = changes.pop("optimizer", None) or torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
    return pretrain(method, dataset or data(), out=out, optimizer=optimizer, **SETTINGS | changes)


def labelled() -> ArrayDataset:
    return ArrayDataset(data().images, torch.arange(len(data())) % 2)


def weights(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_bit_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(out) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(out / "checkpoints")]


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


# What a run keeps


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("keep", [2, 3])
def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path, keep):
    run(tmp_path, keep_checkpoints=keep)
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000004", "step-00000006"][-keep:]


def test_a_cut_run_has_a_checkpoint_of_its_last_step(tmp_path):
    result = run(tmp_path, max_steps=3)
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000003"


def test_a_checkpoint_holds_weights_optimiser_and_state(tmp_path):
    assert names(run(tmp_path).checkpoint) == FILES


def test_the_state_is_the_step_and_what_identifies_the_run(tmp_path):
    state = json.loads((run(tmp_path, seed=3, max_steps=5).checkpoint / "state.json").read_text())
    assert state["step"] == 5
    plan = {"images": 16, "batch_size": 8, "epochs": 3, "seed": 3, "processes": 1}
    assert {name: state["run"][name] for name in plan} == plan


def test_the_manifest_has_the_sha256_of_every_other_file(tmp_path):
    saved = run(tmp_path, max_steps=2).checkpoint
    digests = {name: hashlib.sha256((saved / name).read_bytes()).hexdigest() for name in FILES}
    del digests["manifest.json"]
    assert json.loads((saved / "manifest.json").read_text()) == digests


@pytest.mark.parametrize(
    ("keep_every", "kept"),
    [(None, [11, 12]), (1, [2, 4, 6, 8, 10, 11, 12]), (2, [4, 8, 11, 12]), (3, [6, 11, 12]), (9, [11, 12])],
)
def test_checkpoints_of_every_so_many_epochs_are_kept_too(tmp_path, keep_every, kept):
    run(tmp_path, epochs=6, keep_every=keep_every, checkpoint_every=1)
    assert steps(tmp_path) == kept


def test_the_checkpoint_with_the_highest_value_of_a_metric_is_kept_too(tmp_path):
    history = run(tmp_path, epochs=6, keep_best="contrast_top1").history
    ends = [entry for entry in history if entry["step"] % 2 == 0]
    best = max(ends, key=lambda entry: (entry["contrast_top1"], entry["step"]))
    assert best["step"] < 10  # else this would show nothing
    assert steps(tmp_path) == [best["step"], 10, 12]


def test_a_metric_that_the_log_does_not_have_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`keep_best` must be a figure of the log, one of .*'loss'.*, got 'top1'"):
        run(tmp_path, keep_best="top1")


def test_an_old_checkpoint_that_is_damaged_does_not_stop_the_run(tmp_path):
    run(tmp_path, max_steps=4)
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").write_text("{")
    run(tmp_path, keep_every=1, keep_best="loss")
    assert steps(tmp_path) == [4, 6]


def test_the_weights_are_those_of_the_method(tmp_path):
    from safetensors.torch import load_file

    method = simclr()
    result = run(tmp_path, method=method)
    assert_bit_equal(load_file(result.checkpoint / "method.safetensors"), weights(method))


# Saved whole or not at all


def parts():
    method = simclr()
    return method, torch.optim.SGD(method.parameters(), 0.1, momentum=0.9), make_accelerator("no")


def test_a_checkpoint_that_could_not_be_finished_is_none(tmp_path, monkeypatch):
    method, optimizer, accelerator = parts()

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)  # in the middle: after the weights, before the state
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 7, "run": {}})
    assert list_checkpoints(tmp_path) == []


def test_a_checkpoint_can_be_written_where_an_earlier_run_died_writing_it(tmp_path):
    method, optimizer, accelerator = parts()
    (tmp_path / ".step-00000007.partial" / "rest").mkdir(parents=True)
    saved = save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 7, "run": {}})
    assert names(tmp_path) == ["step-00000007"]
    assert names(saved) == FILES


def test_the_old_checkpoint_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    method, optimizer, accelerator = parts()
    save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {}})

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 2, "run": {}})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_a_checkpoint_of_the_same_step_and_other_settings_is_replaced(tmp_path):
    method, optimizer, accelerator = parts()
    for run_of in ("first", "second"):
        state = {"step": 1, "run": {"name": run_of}}
        saved = save_checkpoint(tmp_path, method, optimizer, accelerator, state)
    assert json.loads((saved / "state.json").read_text())["run"] == {"name": "second"}
    assert names(tmp_path) == ["step-00000001"]


def test_a_checkpoint_of_the_same_step_and_settings_is_not_written_again(tmp_path):
    method, optimizer, accelerator = parts()
    written = []
    for _ in range(2):
        saved = save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {"size": (1, 2)}})
        written.append((saved.stat().st_ino, (saved / "state.json").stat().st_mtime_ns))
    assert written[0] == written[1]


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(tmp_path):
    method, optimizer, accelerator = parts()
    saved = save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {}})
    (saved / "optimizer.pt").write_bytes(b"")
    save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {}})
    assert damage(saved) is None


def test_a_loaded_checkpoint_gives_back_weights_and_momentum(tmp_path):
    method, optimizer, accelerator = parts()
    method(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))).z_a.sum().backward()
    optimizer.step()
    saved = save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {}})
    other = simclr(seed=6)
    fresh = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    load_checkpoint(saved, method=other, optimizer=fresh, accelerator=accelerator)
    assert_bit_equal(weights(other), weights(method))
    for mine, its in zip(other.parameters(), method.parameters(), strict=True):
        assert torch.equal(fresh.state[mine]["momentum_buffer"], optimizer.state[its]["momentum_buffer"])


def test_stages_with_buffers_can_be_saved(tmp_path):
    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

        def forward(self, images, keys):
            return images - self.mean

    method = simclr(augment=TwoViews(RandomResizedCropFlip(8), Centre()))
    assert run(tmp_path, method=method, max_steps=1).checkpoint is not None


# Found again


def test_auto_finds_the_newest_checkpoint_of_the_run(tmp_path):
    run(tmp_path)
    assert find_checkpoint("auto", out=tmp_path) == tmp_path / "checkpoints" / "step-00000006"


def test_auto_finds_nothing_in_a_new_folder(tmp_path):
    assert find_checkpoint("auto", out=tmp_path / "new") is None


def test_never_finds_nothing(tmp_path):
    run(tmp_path)
    assert find_checkpoint("never", out=tmp_path) is None


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path):
    run(tmp_path)
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").unlink()
    assert find_checkpoint("auto", out=tmp_path).name == "step-00000004"


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    run(tmp_path, max_steps=2)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match="Permission denied"):
        run(tmp_path)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    whole, method = simclr(), simclr(seed=6)
    run(tmp_path / "whole", method=whole)
    run(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "step-00000006" / "optimizer.pt").write_bytes(b"")
    result = run(tmp_path / "a", method=method)
    assert_bit_equal(weights(method), weights(whole))
    assert [entry["step"] for entry in result.history] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_set_aside_and_named_once(tmp_path, capsys):
    run(tmp_path)
    damaged = tmp_path / "checkpoints" / "step-00000006"
    (damaged / "optimizer.pt").write_bytes(b"")
    for _ in range(2):
        run(tmp_path)
    assert capsys.readouterr().err == (
        f"{damaged} is damaged (optimizer.pt is not what was written): moved to damaged-step-00000006.\n"
    )
    assert names(tmp_path / "checkpoints") == ["damaged-step-00000006", "step-00000004", "step-00000006"]


def test_what_was_set_aside_is_no_checkpoint(tmp_path):
    run(tmp_path)
    (tmp_path / "checkpoints" / "step-00000006").rename(tmp_path / "checkpoints" / "damaged-step-00000006")
    assert steps(tmp_path) == [4]


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path):
    run(tmp_path)
    for saved in (tmp_path / "checkpoints").iterdir():
        (saved / "optimizer.pt").unlink()
    with refused(
        f"every checkpoint in {tmp_path / 'checkpoints'} is damaged; the newest, step-00000006: optimizer.pt is "
        "missing. Repair one, or resume 'never' to begin anew."
    ):
        run(tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-00000004", "step-00000006"]


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    (saved / "state.json").write_text("{}")
    with refused(f"{saved} is damaged (state.json is not what was written): resume from another checkpoint."):
        run(tmp_path / "b", resume=saved)


def test_a_disk_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    saved = run(tmp_path, max_steps=2).checkpoint

    def unreadable(file, algorithm):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", unreadable)
    assert damage(saved) == "method.safetensors: Input/output error"


@pytest.mark.parametrize("as_text", [True, False])
def test_the_folder_of_a_run_means_its_newest_checkpoint(tmp_path, as_text):
    run(tmp_path / "a")
    found = find_checkpoint(str(tmp_path / "a") if as_text else tmp_path / "a", out=tmp_path / "b")
    assert found == tmp_path / "a" / "checkpoints" / "step-00000006"


def test_the_folder_of_a_checkpoint_means_that_one(tmp_path):
    run(tmp_path / "a")
    wanted = tmp_path / "a" / "checkpoints" / "step-00000004"
    assert find_checkpoint(wanted, out=tmp_path / "b") == wanted


@pytest.mark.parametrize("which", ["run", "checkpoint"])
def test_another_folder_goes_on_from_a_run_and_from_a_checkpoint(tmp_path, which):
    whole = simclr()
    run(tmp_path / "whole", method=whole)
    run(tmp_path / "a", max_steps=3)
    path = tmp_path / "a" if which == "run" else tmp_path / "a" / "checkpoints" / "step-00000003"
    method = simclr(seed=6)
    result = run(tmp_path / "b", method=method, resume=path)
    assert_bit_equal(weights(method), weights(whole))
    assert [entry["step"] for entry in result.history] == [4, 5, 6]


def test_going_on_in_another_folder_leaves_the_first_alone(tmp_path):
    run(tmp_path / "a", max_steps=3)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    run(tmp_path / "b", resume=tmp_path / "a")
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_going_on_from_an_earlier_checkpoint_of_the_same_run_counts_from_there(tmp_path):
    run(tmp_path)
    result = run(tmp_path, resume=tmp_path / "checkpoints" / "step-00000004", max_steps=5)
    assert result.steps == 5
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000005"
    assert find_checkpoint("auto", out=tmp_path) == tmp_path / "checkpoints" / "step-00000005"
    assert names(tmp_path / "checkpoints") == ["step-00000004", "step-00000005"]  # the sound later one is not damaged


# Refused


@pytest.mark.parametrize("content", ["nothing", "folder", "empty checkpoints"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "a"
    if content != "nothing":
        (path / "checkpoints" if content == "empty checkpoints" else path).mkdir(parents=True)
    with refused(f"`resume` must be 'auto', 'never', a checkpoint or the folder of a run, got {path}."):
        run(tmp_path / "b", resume=path)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "names_it"),
    [
        ({"epochs": 4}, "epochs=3, this one has epochs=4"),
        ({"batch_size": 4}, "batch_size=8, this one has batch_size=4"),
        ({"seed": 1}, "seed=0, this one has seed=1"),
        ({"dataset": data(24)}, "images=16, this one has images=24"),
    ],
    ids=["epochs", "batch_size", "seed", "images"],
)
def test_a_run_with_other_settings_is_refused(tmp_path, changes, names_it):
    saved = run(tmp_path, max_steps=2).checkpoint
    log = (tmp_path / "metrics.jsonl").read_bytes()
    message = f"{saved} is of a run with {names_it}: give that value, another `out`, or resume 'never'."
    with refused(message):
        run(tmp_path, **changes)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("changes", "passes", "steps_in_all"),
    [
        ({"batch_size": 4}, 2, 12),
        ({"batch_size": 16}, 2, 3),
        ({"chunk_size": 2}, 2, 6),
        ({"epochs": 4}, 2, 8),
        ({"dataset": data(32)}, 2, 12),
    ],
    ids=["smaller batches", "larger batches", "chunks", "epochs", "images"],
)
def test_a_run_goes_on_with_other_settings_where_they_may_change(tmp_path, changes, passes, steps_in_all):
    run(tmp_path, max_steps=4)
    names_ = {"images" if name == "dataset" else name for name in changes}
    result = run(tmp_path, may_change=names_, **changes)
    assert result.steps == steps_in_all
    own = [entry["step"] for entry in result.history]
    assert own == sorted(set(own))
    assert result.history[-1]["epoch"] == changes.get("epochs", 3)
    assert [entry for entry in result.history if entry["epoch"] == passes]  # the log of what was done before


def test_a_run_with_larger_batches_can_be_resumed_at_once(tmp_path):
    run(tmp_path, max_steps=4)
    changes = {"batch_size": 16, "may_change": {"batch_size"}}
    run(tmp_path, max_steps=2, **changes)  # as many as step 4 was, so nothing but a checkpoint under the new number
    assert steps(tmp_path) == [2]
    assert run(tmp_path, batch_size=16).steps == 3


def test_a_death_while_steps_are_counted_anew_loses_nothing(tmp_path, monkeypatch):
    run(tmp_path, max_steps=4)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(starting, "remove_checkpoints", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, batch_size=16, may_change={"batch_size"})
    assert run(tmp_path, batch_size=16, may_change={"batch_size"}).steps == 3


def test_a_rate_that_may_change_is_the_new_one(tmp_path):
    def sgd(method, lr):
        return torch.optim.SGD(method.parameters(), lr, momentum=0.9)

    first, second = simclr(), simclr()
    run(tmp_path, method=first, optimizer=sgd(first, 0.1), max_steps=2)
    optimizer = sgd(second, 0.3)
    result = run(tmp_path, method=second, optimizer=optimizer, may_change={"optimizer_groups"}, max_steps=3)
    assert optimizer.param_groups[0]["initial_lr"] == 0.3
    assert result.history[-1]["lr"] == pytest.approx(0.3 * 0.5 * (1 + math.cos(math.pi * 2 / 6)))


def test_a_run_of_0_3_with_lars_goes_on_where_its_groups_may_lack_where_the_rate_stands(tmp_path):
    """`lr_in_momentum` came with 0.4."""

    def lars(method):
        return LARS(lars_groups(method, weight_decay=1e-4), 0.5, eta=0.1)

    def go(folder, **changes):
        method = simclr()
        run(tmp_path / folder, method=method, optimizer=lars(method), **changes)
        return weights(method)

    expected = go("whole")
    go("old", max_steps=2)
    checkpoint = tmp_path / "old" / "checkpoints" / "step-00000002"
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    state = json.loads((checkpoint / "state.json").read_text())
    for group in [*optimizer["param_groups"], *state["run"]["optimizer_groups"]]:
        del group["lr_in_momentum"]
    torch.save(optimizer, checkpoint / "optimizer.pt")
    (checkpoint / "state.json").write_text(json.dumps(state))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()}
    del digests["manifest.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(digests))
    with pytest.raises(InputError, match="is of a run with optimizer_groups="):
        go("old")
    assert_bit_equal(go("old", may_change={"optimizer_groups"}), expected)


def test_a_setting_that_the_checkpoint_does_not_know_is_refused(tmp_path):
    saved = run(tmp_path, max_steps=2).checkpoint
    with pytest.raises(InputError, match="is of a run with colour=None, this one has colour=blue:"):
        read_state(saved, run=json.loads((saved / "state.json").read_text())["run"] | {"colour": "blue"})


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    with refused(f"{saved} does not fit the method: projector.bias has shape (4,) there, (5,) here."):
        run(tmp_path / "b", method=simclr(width=5), resume=saved)


def test_nothing_is_written_for_a_checkpoint_of_another_architecture(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    with pytest.raises(InputError):
        run(tmp_path / "b", method=simclr(width=5), resume=saved)
    assert not (tmp_path / "b").exists()


def test_a_method_of_another_architecture_keeps_its_weights(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    method = simclr(width=5)
    before = weights(method)
    with pytest.raises(InputError):
        run(tmp_path / "b", method=method, resume=saved)
    assert_bit_equal(weights(method), before)


@pytest.mark.parametrize(
    ("more", "shapes"), [("here", "None there, (2, 6) here"), ("there", "(2, 6) there, None here")]
)
def test_a_checkpoint_with_other_tensors_is_refused(tmp_path, more, shapes):
    plain, probed = simclr(), SimCLR(Net(), nn.Linear(6, 4), SimCLRAugment(8), nn.Identity(), num_classes=2)
    probed.contrast = NTXentLoss(temperature=0.5)
    here, there = (probed, plain) if more == "here" else (plain, probed)
    saved = run(tmp_path / "a", method=there, dataset=labelled(), max_steps=2).checkpoint
    with refused(f"{saved} does not fit the method: probe.bias has shape {shapes.replace(', 6', ',')}."):
        run(tmp_path / "b", method=here, dataset=labelled(), resume=saved)


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    method = simclr()
    with pytest.raises(InputError, match="optimizer"):
        run(tmp_path / "b", method=method, optimizer=torch.optim.AdamW(method.parameters(), 0.1), resume=saved)


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path, file):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=re.escape(str(saved))):
        run(tmp_path / "b", resume=saved)


def test_a_checkpoint_with_a_changed_number_is_refused(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    content = bytearray((saved / "method.safetensors").read_bytes())
    content[-1] ^= 0x40  # an exponent bit of the last weight: only a checksum can tell
    (saved / "method.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(saved))):
        run(tmp_path / "b", resume=saved)


def test_a_copied_run_folder_can_be_resumed(tmp_path):
    whole = simclr()
    run(tmp_path / "whole", method=whole)
    run(tmp_path / "a", max_steps=3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    method = simclr(seed=6)
    run(tmp_path / "b", method=method)
    assert_bit_equal(weights(method), weights(whole))


def test_a_folder_with_checkpoints_of_its_own_takes_no_others(tmp_path):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    run(tmp_path / "b", max_steps=4)
    before = names(tmp_path / "b" / "checkpoints")
    with refused(f"`out` must have no checkpoints of its own to go on from {saved}, {tmp_path / 'b'} has 2."):
        run(tmp_path / "b", resume=saved)
    assert names(tmp_path / "b" / "checkpoints") == before


@pytest.mark.parametrize("which", ["run", "checkpoint"])
def test_the_same_command_goes_on_in_the_folder_that_another_run_was_continued_in(tmp_path, which):
    saved = run(tmp_path / "a", max_steps=2).checkpoint
    path = tmp_path / "a" if which == "run" else saved
    run(tmp_path / "b", resume=path, max_steps=4)
    method = simclr()
    result = run(tmp_path / "b", resume=path, method=method)
    assert [entry["step"] for entry in result.history] == [3, 4, 5, 6]
    alone = simclr()
    run(tmp_path / "c", method=alone)
    assert_bit_equal(weights(method), weights(alone))


def test_a_run_in_another_precision_is_refused(tmp_path):
    run(tmp_path, max_steps=2)
    AcceleratorState._reset_state()  # as in another process
    with pytest.raises(InputError, match="mixed_precision=no, this one has mixed_precision=bf16: give that value"):
        run(tmp_path, mixed_precision="bf16")
    assert run(tmp_path, mixed_precision="bf16", may_change={"mixed_precision"}).steps == 6


def test_a_checkpoint_says_which_versions_wrote_it(tmp_path):
    saved = run(tmp_path, max_steps=2).checkpoint
    assert json.loads((saved / "state.json").read_text())["versions"]["torch"] == torch.__version__


def test_a_name_that_may_change_and_is_no_setting_is_refused(tmp_path):
    with refused("`may_change` must hold names of settings, 'batchsize' is none, did you mean batch_size?"):
        run(tmp_path, may_change={"batchsize"})


def test_an_old_checkpoint_that_cannot_be_removed_is_named_and_stops_nothing(tmp_path, monkeypatch, capsys):
    def busy(path):
        raise OSError(39, "Directory not empty", str(path))

    monkeypatch.setattr(folders, "discard", busy)
    monkeypatch.setattr(folders, "remove_checkpoints", lambda *args, **kwargs: None)
    assert run(tmp_path).steps == 6
    assert "step-00000002 could not be removed: [Errno 39] Directory not empty" in capsys.readouterr().err


def test_a_run_that_ends_while_another_begins_keeps_its_checkpoints(tmp_path, monkeypatch):
    """The second one looks for checkpoints only once the folder is its own."""
    run(tmp_path, max_steps=2)
    with locked(tmp_path):
        looked = []
        monkeypatch.setattr(starting, "find_checkpoint", lambda *args, **kwargs: looked.append(args))
        with pytest.raises(InputError, match="one run at a time"):
            run(tmp_path)
        assert not looked


def test_a_folder_that_another_run_made_at_the_last_moment_is_refused(tmp_path, monkeypatch):
    out, real = tmp_path / "new", starting.find_checkpoint

    def slow(resume, *, out):
        found = real(resume, out=out)
        (out / "checkpoints" / "step-00000004").mkdir(parents=True)
        return found

    monkeypatch.setattr(starting, "find_checkpoint", slow)
    with pytest.raises(InputError, match=r"one run at a time, another has just been in"):
        run(out)
    assert names(out / "checkpoints") == ["step-00000004"]
