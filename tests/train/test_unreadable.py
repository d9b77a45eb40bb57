"""Images that cannot be read, in a whole run: named, left out and counted, up to the share that is allowed."""

import math
import re
import shutil

import pytest
import torch
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import FolderDataset, InputError, SimCLR, pretrain
from PIL import Image
from torch import nn

IMAGES, BATCH, EPOCHS = 24, 12, 3
SETTINGS = {"epochs": EPOCHS, "batch_size": BATCH, "workers": 0, "log_every": 1, "progress": False}
BAD = ["img03.png", "img11.png"]


class Net(nn.Module):
    feature_dim = 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


class Poisoned(NTXentLoss):
    """NaN in one call."""

    def __init__(self, *, at):
        super().__init__(temperature=0.5)
        self.calls, self.at = 0, at

    def forward(self, z_a, z_b):
        self.calls += 1
        return super().forward(z_a, z_b) * (math.nan if self.calls == self.at + 1 else 1.0)


def simclr() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Net(), nn.Linear(4, 4), SimCLRAugment(8), NTXentLoss(temperature=0.5))


@pytest.fixture
def folder(tmp_path):
    """Images of which two end in the middle, below a header that is whole."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(IMAGES):
        Image.effect_noise((20, 20), 30 + i).convert("RGB").save(root / f"img{i:02}.png")
    cut_off(root, BAD)
    return root


def cut_off(root, names):
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:200])


def noted(out) -> list[str]:
    """Names in `bad_images.txt`, which are in the order of the steps."""
    lines = [line.split("\t") for line in (out / "bad_images.txt").read_text().splitlines()]
    assert [int(step) for step, _ in lines] == sorted(int(step) for step, _ in lines)
    return sorted(name for _, name in lines)


def run(folder, out, **settings):
    return pretrain(simclr(), FolderDataset(folder, labelled=False), out=out, **SETTINGS | settings)


def test_the_first_one_ends_a_run_by_name(folder, tmp_path):
    with pytest.raises(InputError, match=r"img(03|11)\.png cannot be decoded as an image: "):
        run(folder, tmp_path / "run")


def test_they_are_left_out_named_and_counted_once_for_each_time_they_were_met(folder, tmp_path):
    result = run(folder, tmp_path / "run", max_bad_images=0.1)
    assert result.skipped_images == EPOCHS * len(BAD)  # every image is met once in an epoch
    assert result.history[-1]["skipped_images"] == EPOCHS * len(BAD)
    assert result.steps == EPOCHS * IMAGES // BATCH
    assert all(math.isfinite(entry["loss"]) for entry in result.history)
    assert noted(tmp_path / "run") == sorted(str(folder / name) for name in BAD * EPOCHS)


def test_a_run_that_goes_on_counts_on(folder, tmp_path):
    run(folder, tmp_path / "run", max_bad_images=0.1, max_steps=3)
    assert run(folder, tmp_path / "run", max_bad_images=0.1).skipped_images == EPOCHS * len(BAD)
    assert noted(tmp_path / "run") == sorted(str(folder / name) for name in BAD * EPOCHS)


def test_a_run_that_goes_back_forgets_those_of_the_steps_it_takes_again(folder, tmp_path):
    out = tmp_path / "run"
    run(folder, out, max_bad_images=0.1)
    shutil.rmtree(sorted((out / "checkpoints").iterdir())[-1])  # that of the last epoch
    assert run(folder, out, max_bad_images=0.1).skipped_images == EPOCHS * len(BAD)
    assert noted(out) == sorted(str(folder / name) for name in BAD * EPOCHS)
    assert run(folder, out, max_bad_images=0.1, resume="never").skipped_images == EPOCHS * len(BAD)
    assert noted(out) == sorted(str(folder / name) for name in BAD * EPOCHS)


def test_a_run_that_goes_on_with_other_batches_forgets_none(folder, tmp_path):
    """A step of before is half a step now; with this seed both are met in step 3 of before."""
    out = tmp_path / "run"
    run(folder, out, seed=1, max_bad_images=0.1, max_steps=2 * IMAGES // BATCH)
    changes = {
        "seed": 1,
        "batch_size": 2 * BATCH,
        "may_change": {"batch_size", "optimizer_groups"},
        "max_bad_images": 0.1,
    }
    for _ in range(2):  # the second goes on from where the first has ended
        assert run(folder, out, **changes).skipped_images == EPOCHS * len(BAD)
        assert noted(out) == sorted(str(folder / name) for name in BAD * EPOCHS)


def test_those_of_steps_that_a_number_that_is_not_finite_took_back_do_not_count(folder, tmp_path):
    """The step that is not finite is the first of the second epoch; this is noticed at the end of that."""
    out = tmp_path / "run"
    method = simclr()
    method.contrast = Poisoned(at=IMAGES // BATCH)
    data = FolderDataset(folder, labelled=False)
    settings = SETTINGS | {"log_every": 100, "max_bad_images": 0.1, "checkpoint_every": 1}
    with pytest.raises(FloatingPointError):
        pretrain(method, data, out=out, **settings)
    assert run(folder, out, **settings).skipped_images == EPOCHS * len(BAD)
    assert noted(out) == sorted(str(folder / name) for name in BAD * EPOCHS)


def test_more_than_allowed_end_it_and_say_how_many(folder, tmp_path):
    with pytest.raises(InputError, match=r"^`max_bad_images` is 0\.05 of all, 2 of ") as found:
        run(folder, tmp_path / "run", max_bad_images=0.05)
    assert re.search(r"they are in \S+bad_images\.txt\.$", str(found.value))


def test_too_many_of_them_do_not_hide_a_number_that_is_not_finite(folder, tmp_path):
    """Both are noticed at the end of the second epoch; the weights before the bad step are saved."""
    out = tmp_path / "run"
    method = simclr()
    method.contrast = Poisoned(at=1)
    settings = SETTINGS | {"log_every": 100, "checkpoint_every": 100, "max_bad_images": 0.1}
    run(folder, out, **settings, max_steps=2)
    cut_off(folder, ["img05.png", "img07.png", "img17.png", "img19.png"])
    with pytest.raises(FloatingPointError, match="at step 3;"):
        pretrain(method, FolderDataset(folder, labelled=False), out=out, **settings)
    assert [path.name for path in sorted((out / "checkpoints").iterdir())][-1].endswith("3")
