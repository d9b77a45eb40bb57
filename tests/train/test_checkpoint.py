"""Checkpoints: there whole or not at all, found again, and refused where they do not fit."""

import json
import re
import shutil

import pytest
import torch
from cl_augment import RandomResizedCropFlip, SimCLRAugment, TwoViews
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, InputError, SimCLR, make_accelerator, pretrain
from cl_train._checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, read_state, save_checkpoint
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


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


# What a run keeps


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path, keep):
    run(tmp_path, keep_checkpoints=keep)
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000004", "step-00000006"][-keep:]


def test_a_cut_run_has_a_checkpoint_of_its_last_step(tmp_path):
    result = run(tmp_path, max_steps=3)
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000003"


def test_a_checkpoint_holds_weights_optimiser_and_state(tmp_path):
    assert names(run(tmp_path).checkpoint) == ["method.safetensors", "optimizer.pt", "state.json"]


def test_the_state_is_the_step_and_what_identifies_the_run(tmp_path):
    state = json.loads((run(tmp_path, seed=3, max_steps=5).checkpoint / "state.json").read_text())
    assert state["step"] == 5
    plan = {"images": 16, "batch_size": 8, "epochs": 3, "seed": 3}
    assert {name: state["run"][name] for name in plan} == plan
    assert sorted(state["sha256"]) == ["method.safetensors", "optimizer.pt"]


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
        save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 7, "run": {}}, keep=2)
    assert list_checkpoints(tmp_path) == []


def test_a_checkpoint_can_be_written_where_an_earlier_run_died_writing_it(tmp_path):
    method, optimizer, accelerator = parts()
    (tmp_path / ".step-00000007.partial" / "rest").mkdir(parents=True)
    saved = save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 7, "run": {}}, keep=2)
    assert names(tmp_path) == ["step-00000007"]
    assert names(saved) == ["method.safetensors", "optimizer.pt", "state.json"]


def test_the_old_checkpoint_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    method, optimizer, accelerator = parts()
    save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {}}, keep=1)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 2, "run": {}}, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    method, optimizer, accelerator = parts()
    for run_of in ("first", "second"):
        state = {"step": 1, "run": {"name": run_of}}
        saved = save_checkpoint(tmp_path, method, optimizer, accelerator, state, keep=1)
    assert json.loads((saved / "state.json").read_text())["run"] == {"name": "second"}


def test_a_loaded_checkpoint_gives_back_weights_and_momentum(tmp_path):
    method, optimizer, accelerator = parts()
    method(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))).z_a.sum().backward()
    optimizer.step()
    saved = save_checkpoint(tmp_path, method, optimizer, accelerator, {"step": 1, "run": {}}, keep=1)
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


@pytest.mark.parametrize("file", ["method.safetensors", "optimizer.pt", "state.json"])
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
