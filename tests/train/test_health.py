"""Diagnostics: each verdict at both sides of its threshold, and whole runs that are ill on purpose, or well."""

import json
import math
import re
import warnings

import pytest
import torch
from cl_augment import RandomResizedCropFlip, RandomStroke, RandomWarp, SimCLRAugment, TwoViews
from cl_losses import InfoNCELoss, NTXentLoss, contrastive_metrics
from cl_models import ProjectionHead, resnet18
from cl_train import (
    ArrayDataset,
    FolderDataset,
    HealthWarning,
    InputError,
    SimCLR,
    UnhealthyRun,
    WrappedDataset,
    load_digits,
    pretrain,
)
from cl_train import _health as verdicts
from cl_train import _twins as twins
from cl_train._contrast_figures import contrast_figures
from cl_train._health import (
    complete_collapse,
    dimensional_collapse,
    duplicated_images,
    identical_views,
    judge,
    local_negatives,
    temperature_too_high,
    temperature_too_low,
)
from cl_train._twins import share_of_twins
from PIL import Image
from torch import nn
from torch.nn import functional

# Verdicts


def test_a_spread_below_a_tenth_is_complete_collapse():
    assert complete_collapse(0.1, before=0.1) is None
    assert complete_collapse(0.0999, before=0.1).name == "complete collapse"


def test_a_network_may_begin_collapsed_and_grow_out_of_it():
    assert complete_collapse(0.01, before=None) is None
    assert complete_collapse(0.03, before=0.024) is None
    assert complete_collapse(0.03, before=0.026).name == "complete collapse"
    assert dimensional_collapse(1.0, before=None, images=64, width=128) is None
    assert dimensional_collapse(3.0, before=2.4, images=64, width=128) is None


def test_a_collapse_names_its_number_and_what_to_do():
    found = complete_collapse(0.0234, before=0.03)
    assert found.figure == "the projections' spread is 0.023 (healthy: above 0.1)"
    assert found.remedy == (
        "check what keeps images apart (negatives, or BYOL's predictor and target); lower the rate or the weight decay"
    )


@pytest.mark.parametrize(("images", "width", "least"), [(256, 128, 6.4), (20, 128, 2.0)])
def test_a_rank_far_below_the_width_or_the_rows_is_dimensional_collapse(images, width, least):
    assert dimensional_collapse(least, before=least, images=images, width=width) is None
    assert dimensional_collapse(0.99 * least, before=least, images=images, width=width).name == "dimensional collapse"


def test_projections_of_few_dimensions_cannot_collapse_to_fewer():
    assert dimensional_collapse(1.0, before=1.0, images=256, width=16) is None


def test_an_alignment_below_a_thousandth_is_identical_views():
    assert identical_views(1e-3) is None
    assert identical_views(0.99e-3).name == "identical views"


def test_a_softmax_far_surer_than_right_has_too_low_a_temperature():
    doubt = 2 * math.log(2) * 0.5  # what it has at least whose doubt is its share of errors
    assert temperature_too_low(0.21 * doubt, 0.5) is None
    assert temperature_too_low(0.19 * doubt, 0.5).name == "temperature too low"


def test_a_softmax_that_is_sure_and_right_is_well():
    assert temperature_too_low(0.0, 1.0) is None


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_a_softmax_that_knows_its_doubt_is_never_called_too_sure(share):
    """Two candidates, the second right as often as it is said to be: the least entropy for that doubt."""
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert entropy >= 2 * math.log(2) * share - 1e-12
    assert temperature_too_low(entropy, 1 - share) is None


def test_a_softmax_that_is_right_and_nearly_blind_has_too_high_a_temperature():
    blind = math.log(64)
    assert temperature_too_high(0.9989 * blind, 0.6, images=64) is None
    assert temperature_too_high(0.9991 * blind, 0.6, images=64).name == "temperature too high"


def test_a_softmax_that_is_blind_and_wrong_has_not_learnt_yet():
    assert temperature_too_high(math.log(64), 0.4, images=64) is None


def test_losses_that_differ_between_processes_are_local_negatives():
    assert local_negatives([2.0, 2.00001, 2.0]) is None
    assert local_negatives([2.0, 2.00003, 2.0]).name == "local negatives"


def test_losses_of_zero_are_equal():
    assert local_negatives([0.0, 0.0]) is None


def test_more_than_a_twentieth_of_twins_are_duplicated_images():
    assert duplicated_images(0.05) is None
    assert duplicated_images(0.051).name == "duplicated images"


def test_a_point_is_not_also_called_few_dimensions_or_equal_views():
    figures = {"step": 100, "spread": 0.0, "effective_rank": 1.0, "alignment": 0.0, "accuracy": 0.0, "entropy": 0.0}
    assert [found.name for found in judge(figures, figures, images=64, width=128)] == ["complete collapse"]


def test_figures_that_are_not_there_show_nothing():
    assert judge({}, {}, images=64, width=128) == []


@pytest.mark.parametrize("name", ["spread", "effective_rank"])
def test_nothing_has_collapsed_in_the_first_hundred_steps(name):
    for step, count in ((99, 0), (100, 1)):
        figures = {"step": step, name: 0.05}
        assert len(judge(figures, figures, images=64, width=128)) == count


def test_what_begins_as_a_point_is_not_called_equal_views():
    assert judge({"spread": 0.01, "alignment": 1e-5}, {}, images=64, width=128) == []


# Figures


def rows(n=24, d=8) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0))
    return a, a + 0.3 * b


def test_figures_are_those_of_the_losses_with_its_temperature():
    z_a, z_b = rows()
    expected = contrastive_metrics(z_a, z_b, temperature=0.2)
    found = contrast_figures(z_a, z_b, loss=NTXentLoss(temperature=0.2))
    for name in ("accuracy", "entropy", "alignment", "uniformity", "effective_rank"):
        assert found[name] == getattr(expected, name), name


def test_a_loss_without_a_temperature_that_is_known_has_no_entropy():
    assert "entropy" not in contrast_figures(*rows(), loss=InfoNCELoss(temperature=0.2))


def test_spread_is_one_for_orthogonal_rows_and_zero_for_equal_ones():
    both = torch.cat([torch.eye(64), -torch.eye(64)])
    loss = NTXentLoss(temperature=0.5)
    assert contrast_figures(both, both, loss=loss)["spread"].item() == pytest.approx(1)
    assert contrast_figures(torch.ones(8, 4), torch.ones(8, 4), loss=loss)["spread"].item() == pytest.approx(
        0, abs=1e-3
    )


# Twins


def noise(n=64, *, seed=0, size=8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["bytes", "floats", "channels last"])
def test_twins_in_memory_are_counted_exactly(kind):
    images = torch.cat([noise(30), noise(30)[:3], noise(30)[:1]])  # three images twice, one of them once more
    images = {"bytes": images, "floats": images / 255, "channels last": images.to(memory_format=torch.channels_last)}
    assert share_of_twins(ArrayDataset(images[kind])) == pytest.approx(7 / 34)


def test_images_that_differ_in_one_pixel_are_no_twins():
    images = noise(1).repeat(8, 1, 1, 1)
    images[torch.arange(8), 1, 3, torch.arange(8)] ^= 1
    assert share_of_twins(ArrayDataset(images)) == 0


def folder(root, images) -> FolderDataset:
    for number, pixels in enumerate(images):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(root / f"{number:03d}.png")
    return FolderDataset(root, labelled=False)


def test_twins_among_files_are_counted(tmp_path):
    assert share_of_twins(folder(tmp_path, torch.cat([noise(10), noise(10)[:5]]))) == pytest.approx(10 / 15)


def test_files_are_read_only_where_their_size_is_that_of_another(tmp_path, monkeypatch):
    data = folder(tmp_path, torch.cat([noise(10), noise(10)[:2]]))
    for number in range(2, 10):
        with open(data.files[number], "ab") as file:
            file.write(bytes(100 + number))
    read = []
    monkeypatch.setattr(twins, "_content", lambda file: read.append(file))
    share_of_twins(data)
    assert len(read) == 4


def test_of_many_that_are_alike_some_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "_MOST_TENSORS", 10)
    assert share_of_twins(ArrayDataset(noise(32).repeat(2, 1, 1, 1))) == 1


def test_a_file_that_cannot_be_read_is_no_twin(tmp_path):
    data = folder(tmp_path, noise(3).repeat(2, 1, 1, 1))
    (tmp_path / "000.png").unlink()
    assert share_of_twins(data) == pytest.approx(4 / 6)


def test_images_of_others_are_not_read_before_the_first_step():
    class Reluctant:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise AssertionError

    assert share_of_twins(WrappedDataset(Reluctant(), labels=None)) == 0


def test_the_digits_have_no_twins_to_speak_of():
    assert share_of_twins(load_digits()[0]) < 0.01


# Whole runs

SETTINGS = {"epochs": 3, "batch_size": 32, "warmup_epochs": 0, "mixed_precision": "no", "progress": False, "workers": 0}


def textures(n=64, *, seed=0) -> torch.Tensor:
    """Coloured blobs of some pixels."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=8, mode="bicubic").clamp(0, 1)


class Equal(SimCLRAugment):
    """The second view is the first."""

    def stacked(self, images, keys):
        return super().stacked(images, keys)[: len(images)].repeat(2, 1, 1, 1)


LINE = nn.Sequential(nn.Linear(32, 1), nn.BatchNorm1d(1), nn.Linear(1, 40, bias=False))
EASY = TwoViews(RandomResizedCropFlip(8, scale=(0.97, 1.0), flip=0.0))


class Constant(nn.Module):
    """A direction that all projections share, and next to nothing of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 16)

    def forward(self, features):
        return 1 + 1e-3 * self.linear(features).tanh()


def simclr(*, loss=None, augment=None, head=None, channels=3) -> SimCLR:
    torch.manual_seed(5)
    encoder = resnet18(width=0.0625, stem="cifar", in_channels=channels)
    augment = augment or SimCLRAugment(8, strength=0.5, blur=False)
    return SimCLR(encoder, head or ProjectionHead(32, 32, 16), augment, loss or NTXentLoss(temperature=0.2))


@pytest.fixture
def early(monkeypatch):
    """Collapse is named from the first step on."""
    monkeypatch.setattr(verdicts, "_FIRST_STEPS", 0)


def findings(method: SimCLR, images, out, **changes) -> list[str]:
    """What a run warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthWarning)
        optimizer = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
        pretrain(method, ArrayDataset(images), out=out, optimizer=optimizer, **SETTINGS | changes)
    assert len(caught) == len({str(warning.message) for warning in caught})
    return [warning.message.finding for warning in caught]


@pytest.mark.parametrize("temperature", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("images", [textures(), noise()], ids=["textures", "noise"])
def test_a_run_that_is_well_is_left_alone(tmp_path, images, temperature):
    assert findings(simclr(loss=NTXentLoss(temperature=temperature)), images, tmp_path) == []


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_digits_are_left_alone(tmp_path, temperature):
    augment = TwoViews(
        RandomWarp(8, scale=(0.6, 1.1), degrees=15, shear=0.2, elastic=0.1), RandomStroke(thickness=0.5, gamma=0.4)
    )
    method = simclr(loss=NTXentLoss(temperature=temperature), augment=augment, channels=1)
    assert findings(method, load_digits()[0].images[:256], tmp_path, batch_size=64) == []


@pytest.mark.parametrize(
    ("changes", "images", "name"),
    [
        ({"loss": NTXentLoss(temperature=1e-3)}, textures(), "temperature too low"),
        ({"loss": NTXentLoss(temperature=30.0), "augment": EASY}, textures(), "temperature too high"),
        ({"augment": Equal(8, strength=0.5, blur=False)}, textures(), "identical views"),
        ({}, noise(32).repeat(2, 1, 1, 1), "duplicated images"),
        ({"head": Constant()}, textures(), "complete collapse"),
        ({"head": LINE}, textures(), "dimensional collapse"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.usefixtures("early")
def test_a_run_that_is_ill_is_named_once_by_what_it_has_and_nothing_else(tmp_path, changes, images, name):
    assert findings(simclr(**changes), images, tmp_path) == [name]


@pytest.mark.usefixtures("early")
def test_a_warning_is_one_line_with_the_number_the_epoch_and_the_remedy(tmp_path):
    with pytest.warns(HealthWarning) as caught:
        pretrain(simclr(head=Constant()), ArrayDataset(textures()), out=tmp_path, **SETTINGS)
    line = (
        r"health: complete collapse: the projections' spread is \S+ \(healthy: above 0.1\) at epoch 2; check what "
        r"keeps images apart \(negatives, or BYOL's predictor and target\); lower the rate or the weight decay\."
    )
    assert re.fullmatch(line, str(caught[0].message))


@pytest.mark.usefixtures("early")
def test_a_warning_that_a_filter_makes_an_error_ends_the_run_and_it_has_saved(tmp_path):
    with pytest.raises(UnhealthyRun, match=r"^health: complete collapse: ") as caught:
        pretrain(simclr(head=Constant()), ArrayDataset(textures()), out=tmp_path, **SETTINGS)
    assert entries(tmp_path)[-1]["step"] == caught.value.step
    assert (tmp_path / "checkpoints" / f"step-{caught.value.step:08d}").is_dir()


# What is logged, and what is not touched


def entries(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


FIGURES = {"accuracy", "alignment", "uniformity", "effective_rank", "spread", "entropy"}


def test_figures_are_logged_at_the_end_of_each_epoch(tmp_path):
    pretrain(simclr(), ArrayDataset(textures()), out=tmp_path, log_every=1, **SETTINGS)
    assert [entry["step"] for entry in entries(tmp_path) if entry.keys() >= FIGURES] == [2, 4, 6]
    assert not any(entry.keys() & FIGURES for entry in entries(tmp_path) if entry["step"] % 2)


@pytest.mark.parametrize(
    "changes", [{}, {"chunk_size": 10}, {"chunk_size": 10, "batchnorm": "global"}, {"accumulate": 2}], ids=str
)
def test_figures_are_of_all_that_the_last_loss_saw(tmp_path, changes):
    shown = []

    def loss(z_a, z_b):
        shown.append(contrastive_metrics(z_a.detach(), z_b.detach(), temperature=0.1))
        return NTXentLoss(temperature=0.2)(z_a, z_b)

    history = pretrain(
        simclr(loss=loss), ArrayDataset(textures()), out=tmp_path, **SETTINGS | {"epochs": 1} | changes
    ).history
    for name in ("accuracy", "alignment", "uniformity", "effective_rank"):
        assert history[-1][name] == getattr(shown[-1], name).item(), name


def test_off_logs_nothing_looks_at_nothing_and_says_nothing(tmp_path):
    changes = {"health": "off"}
    method = simclr(loss=NTXentLoss(temperature=1e-3))
    assert findings(method, noise(32).repeat(2, 1, 1, 1), tmp_path, **changes) == []
    assert not any(entry.keys() & FIGURES for entry in entries(tmp_path))


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 10}, {"mixed_precision": "bf16"}], ids=str)
def test_weights_are_the_same_with_and_without_a_look_bit_for_bit(tmp_path, changes):
    trained = []
    for health in ("warn", "off"):
        trained.append(simclr())
        settings = SETTINGS | {"health": health} | changes
        pretrain(trained[-1], ArrayDataset(textures()), out=tmp_path / health, **settings)
    for (name, found), expected in zip(trained[0].state_dict().items(), trained[1].state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_run_that_was_cut_logs_the_figures_of_the_whole_run(tmp_path, cut):
    def run(out, **changes):
        pretrain(simclr(), ArrayDataset(textures()), out=tmp_path / out, log_every=1, **SETTINGS, **changes)
        return [{n: v for n, v in e.items() if n != "images_per_second"} for e in entries(tmp_path / out)]

    run("cut", max_steps=cut)
    assert run("cut") == run("whole")


def test_nothing_is_kept_between_looks(tmp_path):
    kept = []

    class Watched(SimCLR):
        def after_step(self, step, total_steps):
            kept.append(None)

        def health(self, embeddings):
            assert not embeddings.z_a.requires_grad
            assert embeddings.z_a.grad_fn is None
            kept.append(embeddings)
            return {}

    plain = simclr()
    method = Watched(plain.encoder, plain.projector, plain.augment, plain.contrast)
    pretrain(method, ArrayDataset(textures()), out=tmp_path, **SETTINGS)
    assert [embeddings is not None for embeddings in kept] == [False, False, True] * 3


def test_a_step_that_was_taken_back_is_not_looked_at(tmp_path):
    calls = []

    def loss(z_a, z_b):
        calls.append(None)
        return NTXentLoss(temperature=0.2)(z_a, z_b) * (math.nan if len(calls) == 4 else 1.0)

    settings = SETTINGS | {"on_nonfinite": "skip"}
    pretrain(simclr(loss=loss), ArrayDataset(textures()), out=tmp_path, **settings)
    assert ["spread" in entry for entry in entries(tmp_path)] == [True, False, True]


# Stopping


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        yield


def ill(out, **changes):
    method = simclr(loss=NTXentLoss(temperature=1e-3))
    return pretrain(method, ArrayDataset(textures()), out=out, **SETTINGS | {"health": "stop"} | changes)


@pytest.mark.usefixtures("silent")
def test_trouble_at_the_ends_of_two_epochs_ends_the_run_saved(tmp_path):
    with pytest.raises(UnhealthyRun, match=r"^health: temperature too low: .* at epoch 2; raise the temp") as caught:
        ill(tmp_path)
    assert (caught.value.finding, caught.value.step) == ("temperature too low", 4)
    assert (tmp_path / "checkpoints" / "step-00000004" / "state.json").is_file()
    assert [entry["step"] for entry in entries(tmp_path)] == [2, 4]


@pytest.mark.usefixtures("silent")
def test_a_restart_between_the_two_epochs_changes_nothing(tmp_path):
    ill(tmp_path, max_steps=2)
    with pytest.raises(UnhealthyRun) as caught:
        ill(tmp_path)
    assert caught.value.step == 4


@pytest.mark.usefixtures("silent")
def test_a_run_that_was_ended_goes_on_where_only_a_warning_is_wanted(tmp_path):
    with pytest.raises(UnhealthyRun):
        ill(tmp_path)
    assert ill(tmp_path, health="warn").steps == 6


@pytest.mark.usefixtures("silent")
def test_duplicated_images_end_a_run_before_its_first_step(tmp_path):
    images = ArrayDataset(noise(32).repeat(2, 1, 1, 1))
    with pytest.raises(UnhealthyRun, match=r"100% of the images have an exact twin .* remove the duplicates") as caught:
        pretrain(simclr(), images, out=tmp_path, health="stop", **SETTINGS)
    assert caught.value.step == 0


def test_another_word_for_health_is_refused(tmp_path):
    message = "`health` must be one of 'warn', 'stop', 'off', got 'no'."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        pretrain(simclr(), ArrayDataset(textures()), out=tmp_path, health="no", **SETTINGS)
