"""BYOL's script: that it is SimCLR's but for what BYOL needs, its numbers, and that it runs."""

import difflib
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from cl_augment import BYOLAugment, SimCLRAugment, TwoViews
from cl_train import load_digits
from PIL import Image
from safetensors import safe_open

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["--width", "0.0625", "--max-steps", "2", "--projection-hidden", "16", "--projection-dim", "8"]
DIGITS = [*TINY, "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "128"]
FOLDERS = [*TINY, "--encoder", "resnet18", "--image-size", "32", "--batch-size", "8", "--workers", "0"]

# epochs, batch, rate, decay of weights, decay of the target: the authors' code, and App. G
PRESETS = {
    "imagenet": (100, 4096, 0.45, 1e-6, 0.99),
    "imagenet-40": (40, 4096, 0.45, 1e-6, 0.97),
    "imagenet-300": (300, 4096, 0.3, 1e-6, 0.99),
    "imagenet-1000": (1000, 4096, 0.2, 1.5e-6, 0.996),
    "imagenet-512": (1000, 512, 0.4, 1.5e-6, 0.9995),
    "cifar10": (1000, 512, 2.0, 1e-6, 0.996),
    "digits": (90, 256, 2.0, 1e-6, 0.97),
}


@pytest.fixture
def script(load_example, monkeypatch):
    """Run the script in this process with the given words; returns the exit code."""
    run = load_example("byol_imagenet")
    module = sys.modules["byol_imagenet"]
    monkeypatch.setattr(module, "use_all_cores", lambda: None)  # of tensors this small, threads wait for each other
    monkeypatch.setattr(module, "draw", lambda *_: None)
    return run


@pytest.fixture
def example(script):
    """The script as a module."""
    return sys.modules["byol_imagenet"]


@pytest.fixture
def images(tmp_path) -> Path:
    """train/ and val/ with two classes: red noise and blue noise."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(("blue", "red")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 80, (40 + index, 48, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 150
                Image.fromarray(pixels).save(tmp_path / part / name / f"{index}.png")
    return tmp_path


def test_the_script_is_that_of_simclr_but_for_what_byol_needs():
    """Who compares the two sees what the methods differ in, and nothing else."""
    simclr, byol = ((EXAMPLES / f"{name}_imagenet.py").read_text().splitlines() for name in ("simclr", "byol"))
    changed = [line for line in difflib.ndiff(simclr, byol) if line[0] in "+-"]
    assert len(changed) <= 108
    assert len(simclr) > 370


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_authors_numbers(example, name):
    (config,) = (preset for preset in example.PRESETS if preset.preset == name)
    found = (config.epochs, config.batch_size, config.lr, config.weight_decay, config.decay)
    assert found == PRESETS[name]
    assert len(example.PRESETS) == len(PRESETS)
    if name.startswith("imagenet"):
        assert (config.encoder, config.image_size, config.warmup_epochs) == ("resnet50", 224, 10)
        assert (config.projection_hidden, config.projection_dim) == (4096, 256)
        assert (config.eval_epochs, config.eval_batch_size, config.eval_lr) == (80, 1024, 0.2)


@pytest.mark.parametrize(
    ("name", "kind"), [("imagenet-300", BYOLAugment), ("cifar10", SimCLRAugment), ("digits", TwoViews)]
)
def test_views_are_byols_where_images_are_large(example, name, kind):
    (config,) = (preset for preset in example.PRESETS if preset.preset == name)
    augment = example.make_augment(config)
    assert type(augment) is kind
    stages = {type(stage).__name__ for view in augment.stages() for stage in view}
    assert ({"GaussianBlur", "Solarize"} <= stages) == (kind is BYOLAugment)
    assert ("GaussianBlur" in stages) == (kind is BYOLAugment)


def test_the_optimiser_has_its_rate_outside_and_decays_the_classifier(example):
    config = replace(example.DIGITS, width=0.0625, projection_hidden=16, projection_dim=8)
    method, optimizer = example.make_method(config, load_digits()[0])
    adapted, plain = optimizer.param_groups
    assert (adapted["lr"], adapted["weight_decay"], adapted["lr_in_momentum"]) == (2.0, 1e-6, False)
    assert (plain["lr"], plain["weight_decay"], plain["lr_in_momentum"]) == (2.0, 0.0, False)
    assert any(parameter is method.classifier.weight for parameter in adapted["params"])
    assert method.target.decay == 0.97


def test_without_arguments_the_digits_are_learnt(script, example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "few_label_table", lambda encoders, *_: {name: {} for name in encoders})
    assert script(*DIGITS) == 0
    printed, errors = capsys.readouterr()
    assert "negatives=" not in errors
    assert "| BYOL encoder | " in printed
    out = tmp_path / "runs" / "byol-digits"
    assert list(json.loads((out / "results.json").read_text())) == ["randomly initialised encoder", "BYOL encoder"]
    config = example.config_of(out)
    assert {field.name for field in fields(config)} >= {"decay", "projection_hidden"}
    assert (config.preset, config.width, config.decay) == ("digits", 0.0625, 0.97)
    with safe_open(out / "checkpoints" / "step-00000002" / "method.safetensors", "pt") as saved:
        assert saved.get_tensor("target.step") == 2
    assert script(*DIGITS, "--decay", "0.9") == 2
    assert "is of a run with decay=0.97, this one has decay=0.9" in capsys.readouterr().err


def test_a_folder_of_images_goes_through_both_phases(script, images, tmp_path, capsys):
    words = ["--eval-batch-size", "8", "--eval-epochs", "1", "--no-baseline", "--chunk-size", "3"]
    assert script("--data", images, *FOLDERS, *words) == 0
    printed, errors = capsys.readouterr()
    assert "| frozen features | top-1 | top-5 |" in printed
    assert "| BYOL encoder | " in printed
    assert "chunk=3" in errors
    file = tmp_path / "runs" / "byol-imagenet" / "encoder.safetensors"
    with safe_open(file, "pt") as saved:
        assert saved.get_tensor("conv1.weight").shape == (4, 3, 7, 7)


def test_global_statistics_are_no_choice(script, capsys):
    assert script(*DIGITS, "--batchnorm", "global") == 2
    assert "--batchnorm" in capsys.readouterr().err
