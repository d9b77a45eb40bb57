"""The loop: what it learns, writes, refuses, and that a restart changes nothing."""

import json
import math
import os
import re
import signal

import numpy as np
import pytest
import torch
from cl_augment import SimCLRAugment, sample_keys
from cl_losses import NTXentLoss
from cl_train import LARS, ArrayDataset, FolderDataset, InputError, SimCLR, lars_groups, make_accelerator, pretrain
from cl_train._interrupt import Interrupted
from cl_train._plan import Plan
from PIL import Image
from torch import nn
from torch.testing import assert_close

few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

EPOCHS, BATCH, IMAGES = 3, 8, 34  # 4 steps in an epoch, 12 in all; two images left out
SETTINGS = {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "warmup_epochs": 1,
    "log_every": 1,
    "workers": 0,
    "mixed_precision": "no",
    "progress": False,
}


class Net(nn.Module):
    """Convolution, BatchNorm (whose statistics a resume must bring back), mean over positions."""

    feature_dim = 8

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, images):
        return torch.relu(self.bn(self.conv(images))).mean((2, 3))


def data(n=IMAGES, *, seed=0, labelled=True) -> ArrayDataset:
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ArrayDataset(images, torch.arange(n) % 4 if labelled else None)


def simclr(*, num_classes=4, loss=None, width=16) -> SimCLR:
    torch.manual_seed(5)
    encoder, projector = Net(), nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    return SimCLR(encoder, projector, SimCLRAugment(8), loss or NTXentLoss(temperature=0.5), num_classes=num_classes)


def weights(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def assert_bit_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def figures(history) -> list[dict]:
    """The log without the one figure that a clock makes."""
    return [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in history]


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run from beginning to end: its folder, result and weights. Nobody may write there."""
    out, method = tmp_path_factory.mktemp("whole") / "deep" / "run", simclr()
    result = pretrain(method, data(), out=out, config={"lr": 0.3, "preset": "tiny"}, **SETTINGS)
    return result, weights(method)


# What a run learns


def coloured_images(n=64) -> ArrayDataset:
    """Every image is one colour of its own, which SimCLR without colour jitter can tell apart."""
    colours = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(colours.expand(n, 3, 8, 8).contiguous())


def test_the_loss_falls_on_an_easy_task(tmp_path):
    method = simclr(num_classes=None)
    method.augment = SimCLRAugment(8, strength=0.0)
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    settings = SETTINGS | {"epochs": 10, "batch_size": 32}
    history = pretrain(method, coloured_images(), out=tmp_path, optimizer=optimizer, **settings).history
    assert history[0]["loss"] > math.log(63) - 0.6
    assert history[-1]["loss"] < history[0]["loss"] - 0.5


def test_the_probe_learns_classes_that_the_features_show(tmp_path):
    images = torch.zeros(48, 3, 8, 8)
    labels = torch.arange(48) % 3
    images[torch.arange(48), labels] = 1.0  # class c is all of channel c
    method = simclr(num_classes=3)
    method.augment = SimCLRAugment(8, strength=0.0)
    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    settings = SETTINGS | {"epochs": 12, "batch_size": 24, "health": "off"}  # images are equal on purpose
    history = pretrain(method, ArrayDataset(images, labels), out=tmp_path, optimizer=optimizer, **settings).history
    assert history[-1]["probe_top1"] > 0.7


def test_the_probe_does_not_change_the_encoder(tmp_path):
    with_probe, without = simclr(num_classes=4), simclr(num_classes=None)
    assert_bit_equal(weights(with_probe.encoder), weights(without.encoder))
    pretrain(with_probe, data(), out=tmp_path / "with", **SETTINGS)
    pretrain(without, data(), out=tmp_path / "without", **SETTINGS)
    assert_bit_equal(weights(with_probe.encoder), weights(without.encoder))
    assert_bit_equal(weights(with_probe.projector), weights(without.projector))


def test_labels_do_not_change_the_encoder(tmp_path):
    first, second = simclr(), simclr()
    shuffled = ArrayDataset(data().images, data().labels.flip(0))
    pretrain(first, data(), out=tmp_path / "first", **SETTINGS)
    pretrain(second, shuffled, out=tmp_path / "second", **SETTINGS)
    assert_bit_equal(weights(first.encoder), weights(second.encoder))
    assert not torch.equal(first.probe.weight, second.probe.weight)


def test_images_without_labels_are_enough(tmp_path):
    history = pretrain(simclr(num_classes=None), data(labelled=False), out=tmp_path, **SETTINGS).history
    assert len(history) == 12
    assert "probe_top1" not in history[0]


def test_a_probe_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match="`num_classes` asks for a probe, but the data set has no labels"):
        pretrain(simclr(), data(labelled=False), out=tmp_path, **SETTINGS)


def test_the_result_has_the_encoder_that_was_handed_over(whole, tmp_path):
    method = simclr()
    assert pretrain(method, data(), out=tmp_path, **SETTINGS, max_steps=1).encoder is method.encoder


def test_the_optimiser_is_lars_with_the_rate_of_the_paper_by_default(whole, tmp_path):
    from cl_train import lars_groups

    method = simclr()
    optimizer = LARS(lars_groups(method, weight_decay=1e-6), 0.3 * BATCH / 256)
    pretrain(method, data(), out=tmp_path, optimizer=optimizer, **SETTINGS)
    assert_bit_equal(weights(method), whole[1])


def test_another_optimiser_gives_other_weights(whole, tmp_path):
    method = simclr()
    optimizer = torch.optim.SGD(method.parameters(), 0.3 * BATCH / 256, momentum=0.9)
    pretrain(method, data(), out=tmp_path, optimizer=optimizer, **SETTINGS)
    assert not torch.equal(method.encoder.conv.weight, whole[1]["encoder.conv.weight"])


def test_steps_of_two_epochs_are_those_of_a_loop_by_hand(tmp_path):
    by_loop, by_hand = simclr(), simclr()
    optimizer = torch.optim.SGD(by_loop.parameters(), 0.2, momentum=0.9)
    settings = SETTINGS | {"warmup_epochs": 0}
    pretrain(by_loop, data(), out=tmp_path, optimizer=optimizer, seed=7, max_steps=6, **settings)

    optimizer = torch.optim.SGD(by_hand.parameters(), 0.2, momentum=0.9)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.2 * 0.5 * (1 + math.cos(math.pi * step / 12))
        epoch, place = divmod(step, 4)
        order = np.random.default_rng([7, epoch]).permutation(IMAGES)
        numbers = torch.from_numpy(order[place * BATCH : (place + 1) * BATCH])
        view_a, view_b = by_hand.augment(data().images[numbers], sample_keys(numbers, seed=7, epoch=epoch))
        loss, _ = by_hand.loss(by_hand(torch.cat([view_a, view_b])), data().labels[numbers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in by_hand.state_dict().items():
        assert_close(by_loop.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_bf16_trains_float32_weights(tmp_path):
    method = simclr()
    result = pretrain(method, data(), out=tmp_path, **SETTINGS | {"mixed_precision": "bf16"})
    assert all(math.isfinite(entry["loss"]) for entry in result.history)
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "config.json").read_text())["mixed_precision"] == "bf16"


def test_bf16_computes_the_encoder_in_bf16(tmp_path):
    seen = []
    method = simclr()
    method.encoder.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    pretrain(method, data(), out=tmp_path, max_steps=1, **SETTINGS | {"mixed_precision": "bf16"})
    assert seen == [torch.bfloat16]


def test_a_method_that_is_trained_twice_is_trained_in_bf16_twice(tmp_path):
    once, twice = simclr(), simclr()
    settings = SETTINGS | {"mixed_precision": "bf16"}
    pretrain(once, data(), out=tmp_path / "once", **settings)
    pretrain(twice, data(), out=tmp_path / "twice", max_steps=5, **settings)
    pretrain(twice, data(), out=tmp_path / "twice", **settings)
    assert_bit_equal(weights(twice), weights(once))


def test_bf16_leaves_the_loss_in_float32(tmp_path):
    seen = []

    def loss(z_a, z_b):
        seen.append(z_a.dtype)
        return NTXentLoss(temperature=0.5)(z_a, z_b)

    pretrain(simclr(loss=loss), data(), out=tmp_path, max_steps=1, **SETTINGS | {"mixed_precision": "bf16"})
    assert seen == [torch.float32]


@few_cores
@forking
def test_files_and_memory_give_the_same_run(tmp_path):
    random = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / "data" / f"class {number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (11, 9, 3), dtype=np.uint8)).save(path)
    folder = FolderDataset(tmp_path / "data")
    memory = ArrayDataset(torch.stack([folder.read(i) for i in range(16)]), folder.labels)
    runs = {}
    for name, (dataset, workers) in {"memory": (memory, 0), "0": (folder, 0), "2": (folder, 2)}.items():
        method = simclr(num_classes=2)
        settings = SETTINGS | {"epochs": 2, "workers": workers}
        runs[name] = (pretrain(method, dataset, out=tmp_path / name, **settings).history, weights(method))
    for name in ("0", "2"):
        assert figures(runs[name][0]) == figures(runs["memory"][0])
        assert_bit_equal(runs[name][1], runs["memory"][1])


# What a run writes


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_every_step_once_and_in_order(whole):
    assert [entry["step"] for entry in lines(whole[0].out)] == list(range(1, 13))


def test_the_log_is_the_history_of_the_result(whole):
    assert lines(whole[0].out) == whole[0].history


def test_the_log_counts_epochs_as_passes_so_far(whole):
    assert [entry["epoch"] for entry in whole[0].history] == [step / 4 for step in range(1, 13)]


def test_the_log_counts_images_per_second(whole):
    assert all(entry["images_per_second"] > 0 for entry in whole[0].history)


def test_learning_rates_rise_from_zero_and_fall_along_a_cosine(whole):
    factors = [step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 8)) for step in range(12)]
    assert factors[0] == 0
    assert [entry["lr"] for entry in whole[0].history] == pytest.approx([0.3 * BATCH / 256 * f for f in factors])


def test_learning_rates_start_at_the_optimisers_own_without_warm_up(tmp_path):
    settings = SETTINGS | {"warmup_epochs": 0}
    history = pretrain(simclr(), data(), out=tmp_path, max_steps=2, **settings).history
    cosine = [1, 0.5 * (1 + math.cos(math.pi / 12))]
    assert [entry["lr"] for entry in history] == pytest.approx([0.3 * BATCH / 256 * f for f in cosine])


def test_every_group_follows_the_schedule_from_its_own_rate(tmp_path):
    method = simclr(num_classes=None)
    groups = [{"params": method.encoder.parameters(), "lr": 0.1}, {"params": method.projector.parameters()}]
    optimizer = torch.optim.SGD(groups, 0.4)
    pretrain(method, data(), out=tmp_path, optimizer=optimizer, max_steps=2, **SETTINGS)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 4, 0.4 / 4])


def test_log_every_averages_over_the_steps_between(whole, tmp_path):
    history = pretrain(simclr(), data(), out=tmp_path, **SETTINGS | {"log_every": 3}).history
    assert [entry["step"] for entry in history] == [3, 4, 6, 8, 9, 12]
    each = [entry["loss"] for entry in whole[0].history]
    expected = [sum(each[0:3]) / 3, each[3], sum(each[4:6]) / 2, sum(each[6:8]) / 2, each[8], sum(each[9:12]) / 3]
    assert [entry["loss"] for entry in history] == pytest.approx(expected, rel=1e-6)


def test_config_json_says_what_identifies_the_run(whole):
    config = json.loads((whole[0].out / "config.json").read_text())
    expected = {"images": IMAGES, "batch_size": BATCH, "epochs": EPOCHS, "seed": 0, "optimizer": "LARS"}
    assert {name: config["run"][name] for name in expected} == expected
    assert config["run"]["optimizer_groups"][0]["initial_lr"] > 0


def test_config_json_keeps_the_callers_settings(whole):
    config = json.loads((whole[0].out / "config.json").read_text())
    assert (config["run"]["lr"], config["run"]["preset"]) == (0.3, "tiny")


def test_a_run_does_not_go_on_with_another_learning_rate(tmp_path):
    def lars(method, lr):
        return LARS(lars_groups(method), lr)

    method = simclr()
    pretrain(method, data(), out=tmp_path, optimizer=lars(method, 0.5), max_steps=1, **SETTINGS)
    with pytest.raises(InputError, match=r"is of a run with optimizer_groups=.*0.5.* this one has .*0.25"):
        pretrain(method, data(), out=tmp_path, optimizer=lars(method, 0.25), **SETTINGS)


def test_a_run_does_not_go_on_with_other_settings_of_the_caller(tmp_path):
    pretrain(simclr(), data(), out=tmp_path, config={"temperature": 0.5}, max_steps=1, **SETTINGS)
    with pytest.raises(InputError, match=r"is of a run with temperature=0.5, this one has temperature=0.1"):
        pretrain(simclr(), data(), out=tmp_path, config={"temperature": 0.1}, **SETTINGS)


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="`warmup_epochs` must be at most `epochs`, 3, got 10"):
        pretrain(simclr(), data(), out=tmp_path, **SETTINGS | {"epochs": 3, "warmup_epochs": 10})


def test_config_json_names_processes_device_precision_and_versions(whole):
    config = json.loads((whole[0].out / "config.json").read_text())
    assert (config["processes"], config["device"], config["mixed_precision"]) == (1, "cpu", "no")
    assert config["versions"]["torch"] == torch.__version__


def test_the_run_folder_holds_these_and_nothing_else(whole):
    assert sorted(path.name for path in whole[0].out.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_a_finished_run_took_all_steps(whole):
    assert whole[0].steps == 12
    assert whole[0].seconds > 0


def test_without_a_terminal_progress_is_a_line_at_the_end(tmp_path, capsys):
    pretrain(simclr(), data(), out=tmp_path, max_steps=2, **SETTINGS | {"progress": True})
    first, last = capsys.readouterr().err.splitlines()
    assert first == (
        "world=1 backend=none device=cpu precision=no threads=1 images/step=8 negatives=14 parameters=0.000488M steps=2"
    )
    assert re.fullmatch(
        r"pretrain: step 2/2, loss \d\.\d+, contrast_top1 \S+, probe_top1 \S+, \S+ images/s, took 00:0\d", last
    )


def test_the_title_is_what_the_progress_calls_the_run(tmp_path, capsys):
    pretrain(simclr(), data(), out=tmp_path, max_steps=1, title="SupCon", **SETTINGS | {"progress": True})
    assert capsys.readouterr().err.splitlines()[-1].startswith("SupCon: step 1/1, ")


def test_without_progress_nothing_is_printed(tmp_path, capsys):
    pretrain(simclr(), data(), out=tmp_path, max_steps=2, **SETTINGS)
    assert capsys.readouterr() == ("", "")


# Restarts


def asking(at: int):
    """A hook that asks the run to stop in its forward number `at`, from 1."""
    calls = []

    def hook(*args):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


@pytest.mark.parametrize("cut", [1, 4, 6, 11], ids=["after one step", "after an epoch", "in an epoch", "near the end"])
def test_a_run_that_was_cut_and_resumed_is_the_whole_run_bit_for_bit(whole, tmp_path, cut):
    pretrain(simclr(), data(), out=tmp_path, max_steps=cut, **SETTINGS)
    torch.manual_seed(999)  # a new process has other global random numbers
    resumed = simclr()
    for parameter in resumed.parameters():
        nn.init.normal_(parameter)  # the checkpoint's count, not these
    result = pretrain(resumed, data(), out=tmp_path, **SETTINGS)
    assert_bit_equal(weights(resumed), whole[1])
    assert figures(result.history) == figures(whole[0].history)


def test_a_resumed_run_logs_to_the_same_file(whole, tmp_path):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, **SETTINGS)
    result = pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
    assert lines(tmp_path) == result.history
    assert [entry["step"] for entry in result.history] == list(range(1, 13))


def test_entries_beyond_the_checkpoint_are_dropped_on_resume(tmp_path):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, **SETTINGS)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # the run went on and died before its next checkpoint
        file.write('{"step": 7, "epoch": 1.75, "loss": 0.0}\n')
    result = pretrain(simclr(), data(), out=tmp_path, max_steps=8, **SETTINGS)
    assert [entry["step"] for entry in result.history] == list(range(1, 9))
    assert result.history[6]["loss"] > 0


def test_a_log_that_was_cut_in_the_middle_of_a_line_does_not_stop_a_resume(tmp_path):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, **SETTINGS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    result = pretrain(simclr(), data(), out=tmp_path, max_steps=8, **SETTINGS)
    assert [entry["step"] for entry in result.history] == list(range(1, 9))


def test_a_log_with_a_damaged_line_stops_a_resume_by_name(tmp_path):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, **SETTINGS)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 3', '"stop": 3'))
    with refused(f"{log} is damaged, line 3 is no entry: repair or remove it, or resume 'never'."):
        pretrain(simclr(), data(), out=tmp_path, **SETTINGS)


def test_a_death_while_the_log_is_rewritten_loses_nothing_of_it(tmp_path, monkeypatch):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, **SETTINGS)

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
    assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, 7))
    assert len(pretrain(simclr(), data(), out=tmp_path, **SETTINGS).history) == 12


@pytest.mark.parametrize("at", [1, 2, 5, 7, 11])
def test_a_run_that_was_asked_to_stop_goes_on_in_the_middle_of_a_window_of_the_log(tmp_path, at):
    settings, runs = SETTINGS | {"log_every": 3}, {}
    for name in ("whole", "stopped"):
        method = simclr()
        if name == "stopped":
            method.encoder.register_forward_hook(asking(at))
            with pytest.raises(Interrupted):
                pretrain(method, data(), out=tmp_path / name, **settings)
            method = simclr()
        history = pretrain(method, data(), out=tmp_path / name, **settings).history
        runs[name] = figures(history), weights(method)
    assert runs["stopped"][0] == runs["whole"][0]
    assert_bit_equal(runs["stopped"][1], runs["whole"][1])


def test_the_same_run_twice_is_the_same_bit_for_bit(whole, tmp_path):
    method = simclr()
    torch.manual_seed(999)
    pretrain(method, data(), out=tmp_path, **SETTINGS)
    assert_bit_equal(weights(method), whole[1])


def test_another_seed_gives_other_weights(whole, tmp_path):
    method = simclr()
    pretrain(method, data(), out=tmp_path, seed=1, **SETTINGS)
    assert not torch.equal(method.encoder.conv.weight, whole[1]["encoder.conv.weight"])


def test_a_restart_without_the_checkpoint_is_noticed(whole, tmp_path):
    method = simclr()  # weights of step 6, but a fresh optimiser and step 0: what a bad resume would do
    pretrain(method, data(), out=tmp_path / "first", max_steps=6, **SETTINGS)
    pretrain(method, data(), out=tmp_path / "second", max_steps=6, **SETTINGS)
    assert not torch.equal(method.encoder.conv.weight, whole[1]["encoder.conv.weight"])


def test_a_finished_run_takes_no_step_when_resumed(whole, tmp_path):
    pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
    calls, method = [], simclr()
    method.encoder.register_forward_hook(lambda *args: calls.append(args))
    result = pretrain(method, data(), out=tmp_path, **SETTINGS)
    assert calls == []
    assert (result.steps, result.seconds) == (12, 0.0)


def test_a_finished_run_gives_its_weights_and_log_when_resumed(whole, tmp_path):
    pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
    method = simclr()
    result = pretrain(method, data(), out=tmp_path, **SETTINGS)
    assert_bit_equal(weights(method), whole[1])
    assert figures(result.history) == figures(lines(tmp_path)) == figures(whole[0].history)
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000012"


def test_resume_never_begins_anew(whole, tmp_path):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, seed=3, **SETTINGS)
    method = simclr()
    result = pretrain(method, data(), out=tmp_path, resume="never", **SETTINGS)
    assert_bit_equal(weights(method), whole[1])
    assert figures(result.history) == figures(whole[0].history)


def test_resume_never_removes_the_checkpoints_of_the_run_before(tmp_path):
    pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
    pretrain(simclr(), data(), out=tmp_path, resume="never", max_steps=2, **SETTINGS)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_run_can_be_cut_by_fewer_steps_than_it_has_taken(tmp_path):
    pretrain(simclr(), data(), out=tmp_path, max_steps=6, **SETTINGS)
    assert pretrain(simclr(), data(), out=tmp_path, max_steps=2, **SETTINGS).steps == 6


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1, got 0."),
        ({"seed": -1}, "`seed` must be at least 0, got -1."),
        ({"batch_size": 1}, "`batch_size` must be at least 2 (one image has no negatives), got 1."),
        ({"epochs": 1.5}, "`epochs` must be a whole number, got 1.5."),
        ({"batch_size": 8.0}, "`batch_size` must be a whole number, got 8.0."),
        ({"log_every": 2.5}, "`log_every` must be a whole number, got 2.5."),
        ({"workers": True}, "`workers` must be a whole number, got True."),
        ({"warmup_epochs": math.nan}, "`warmup_epochs` must be at most `epochs`, 3, got nan."),
        ({"batch_size": 35}, "`batch_size` must be at most the number of images, 34, got 35."),
        ({"warmup_epochs": -0.5}, "`warmup_epochs` must be at least 0, got -0.5."),
        ({"workers": -1}, "`workers` must be at least 0, got -1."),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0."),
        ({"log_every": 0}, "`log_every` must be at least 1, got 0."),
        ({"keep_checkpoints": 1}, "`keep_checkpoints` must be at least 2, got 1."),
        ({"keep_every": 0}, "`keep_every` must be at least 1, got 0."),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1, got 0."),
        ({"max_bad_images": 1.0}, "`max_bad_images` must be in [0, 1), got 1.0."),
        ({"on_nonfinite": "warn"}, "`on_nonfinite` must be one of 'stop', 'skip', got 'warn'."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_out_of_its_range_is_refused_before_anything_is_written(tmp_path, changes, message):
    with refused(message):
        pretrain(simclr(), data(), out=tmp_path / "run", **SETTINGS | changes)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_processes_cannot_share_is_refused():
    with refused("`batch_size` must be a multiple of the 3 processes, got 8."):
        Plan(data(), batch_size=8, epochs=1, seed=0, process=0, processes=3)


def test_a_run_folder_that_is_read_only_is_refused(tmp_path, monkeypatch):
    def denied(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "touch", denied)  # to root, who may run this, nothing is read-only
    with refused(f"`out` must be a folder that can be written to, {tmp_path}: Permission denied."):
        pretrain(simclr(), data(), out=tmp_path, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    with refused(f"`out` must be a folder that can be written to, {out}: Not a directory."):
        pretrain(simclr(), data(), out=out, **SETTINGS)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with refused(f"`out` must be a folder that can be written to, {tmp_path / 'run'}: File exists."):
        pretrain(simclr(), data(), out=tmp_path / "run", **SETTINGS)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_refused_run_leaves_the_weights_alone(tmp_path):
    method = simclr()
    (tmp_path / "file").touch()
    before = weights(method)
    with pytest.raises(InputError):
        pretrain(method, data(), out=tmp_path / "file" / "run", **SETTINGS)
    assert_bit_equal(weights(method), before)


# Numbers that are not finite; more in test_finite.py


def turning(value: float, *, at: int):
    """NT-Xent, which gives `value` at one step."""
    calls = []

    def loss(z_a, z_b):
        calls.append(None)
        return NTXentLoss(temperature=0.5)(z_a, z_b) * (value if len(calls) == at else 1.0)

    return loss


@pytest.mark.parametrize("log_every", [1, 50])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path, value, log_every):
    message = (
        "an embedding, the loss or a gradient is not finite at step 5; weights are those before it, its images are in "
        f"{tmp_path / 'nonfinite.json'}."
    )
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        pretrain(simclr(loss=turning(value, at=6)), data(), out=tmp_path, **SETTINGS | {"log_every": log_every})


def test_a_loss_that_is_not_finite_is_in_no_checkpoint(whole, tmp_path):
    with pytest.raises(FloatingPointError):
        pretrain(simclr(loss=turning(math.nan, at=8)), data(), out=tmp_path, **SETTINGS)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000007"]
    method = simclr()
    pretrain(method, data(), out=tmp_path, **SETTINGS)
    assert_bit_equal(weights(method), whole[1])


def test_a_loss_that_is_not_finite_is_in_no_entry_of_the_log(tmp_path):
    with pytest.raises(FloatingPointError):
        pretrain(simclr(loss=turning(math.nan, at=8)), data(), out=tmp_path, **SETTINGS)
    assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, 8))
    assert all(math.isfinite(value) for entry in lines(tmp_path) for value in entry.values())


def test_a_loss_that_is_not_finite_is_noticed_where_the_next_ones_are_neither(tmp_path):
    def distance(z_a, z_b):
        return (z_a - z_b).square().mean() * math.nan

    with pytest.raises(FloatingPointError, match="is not finite at step 0; weights are those before it"):
        pretrain(simclr(loss=distance), data(), out=tmp_path, **SETTINGS | {"log_every": 50})


# The accelerator


def test_a_given_accelerator_decides_the_precision(tmp_path):
    accelerator = make_accelerator("bf16")
    pretrain(simclr(), data(), out=tmp_path, accelerator=accelerator, max_steps=1, **SETTINGS)
    assert json.loads((tmp_path / "config.json").read_text())["mixed_precision"] == "bf16"


def test_runs_after_one_another_may_share_an_accelerator(whole, tmp_path):
    accelerator = make_accelerator("no")
    for name in ("first", "second"):
        method = simclr()
        pretrain(method, data(), out=tmp_path / name, accelerator=accelerator, **SETTINGS)
        assert_bit_equal(weights(method), whole[1])
