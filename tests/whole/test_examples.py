"""The examples as people run them: tiny settings, made-up image folders, every bad input of the manual."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "simclr_imagenet.py"
DIGITS = ["--epochs", "1", "--warmup-epochs", "0", "--width", "0.0625", "--batch-size", "128", "--max-steps", "2"]
FOLDERS = [
    *["--encoder", "resnet18", "--width", "0.0625", "--image-size", "32", "--batch-size", "8"],
    *["--max-steps", "2", "--eval-batch-size", "8", "--workers", "0"],
]
TIMM = ["--image-size", "32", *FOLDERS[6:]]  # its networks have a width of their own


@pytest.fixture
def script(load_example):
    """Run the script in this process with the given words; returns the exit code."""
    return load_example("simclr_imagenet")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """train/ and val/ with two classes of JPEGs of unequal sizes: red noise and blue noise."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("blue", "red")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 80, (40 + index, 56 - index, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 150
                Image.fromarray(pixels).save(root / part / name / f"{index}.jpg")
    return root


def test_without_arguments_the_digits_are_learnt_and_judged(script, tmp_path, capsys):
    assert script(*DIGITS) == 0
    printed, errors = capsys.readouterr()
    assert errors.count("world=1 backend=none device=") == 1
    assert "handwritten digits" in printed
    assert "--data DIR" in printed
    assert "| frozen features | 1 label per class | 5 labels per class | all labels |" in printed
    for row in ("raw pixels", "randomly initialised encoder", "SimCLR encoder"):
        assert f"| {row} | 0." in printed
    out = tmp_path / "runs" / "digits"
    pictures = ("views.png", "curves.png", "neighbours.png", "map.png")
    for name in ("metrics.jsonl", "config.json", "encoder.safetensors", "results.json", *pictures):
        assert (out / name).stat().st_size > 0, name
    assert json.loads((out / "results.json").read_text())["raw pixels"]["all labels"] == pytest.approx(0.978, abs=0.005)


def test_a_finished_run_is_only_evaluated(script, tmp_path, capsys):
    assert script(*DIGITS) == 0
    weights = load_file(tmp_path / "runs/digits/encoder.safetensors")
    capsys.readouterr()
    assert script(*DIGITS) == 0
    printed = capsys.readouterr().out
    assert "pretrained: step 2, 0 s in this run" in printed
    assert "| SimCLR encoder | 0." in printed
    again = load_file(tmp_path / "runs/digits/encoder.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_a_run_does_not_go_on_with_another_temperature(script, capsys):
    assert script(*DIGITS) == 0
    capsys.readouterr()
    assert script(*DIGITS, "--temperature", "0.1") == 2
    assert "is of a run with temperature=0.5, this one has temperature=0.1" in capsys.readouterr().err


@pytest.fixture
def unjudged(script, monkeypatch):
    """The script without its evaluation of digits, which takes longer than all the rest of two steps."""
    module = sys.modules["simclr_imagenet"]
    monkeypatch.setattr(module, "few_label_table", lambda encoders, *_: {name: {} for name in encoders})
    return script


def test_how_a_run_is_watched_and_kept_may_change(unjudged, capsys):
    assert unjudged(*DIGITS) == 0
    words = ["--checkpoint-every", "5", "--keep-every", "2", "--keep-best", "probe_top1", "--workers", "0"]
    words += ["--on-nonfinite", "skip", "--max-bad-images", "0.1", "--trackers", "tensorboard"]
    words += ["--compile", "views", "--may-change", "compile"]
    assert unjudged(*DIGITS, *words) == 0
    assert "pretrained: step 2, 0 s in this run" in capsys.readouterr().out


@pytest.fixture
def handed_over(script, monkeypatch):
    """What the script hands to `pretrain`, which does nothing then."""

    def run(*words: object) -> dict[str, object]:
        found = {}

        def pretrain(method, dataset, **arguments):
            found.update(arguments)
            raise SystemExit(77)

        monkeypatch.setattr(sys.modules["simclr_imagenet"], "pretrain", pretrain)
        assert script(*words) == 77
        return found

    return run


def test_flags_reach_the_loop(handed_over):
    values = {
        "epochs": 11,
        "batch_size": 64,
        "out": "some/where",
        "chunk_size": 64,
        "accumulate": 2,
        "batchnorm": "global",
        "warmup_epochs": 3.0,
        "seed": 5,
        "resume": "never",
        "workers": 0,
        "compile": "all",
        "max_steps": 9,
        "checkpoint_every": 7,
        "keep_every": 3,
        "keep_best": "loss",
        "on_nonfinite": "skip",
        "health": "stop",
        "max_bad_images": 0.25,
        "trackers": ("tensorboard", "wandb"),
    }
    words = []
    for name, value in values.items():
        words += ["--" + name.replace("_", "-"), *(value if isinstance(value, tuple) else [value])]
    found = handed_over(*words, "--may-change", "processes")
    assert "processes" in found["may_change"]
    assert {name: found[name] for name in values} == values


def test_settings_may_stand_in_a_file(handed_over, tmp_path):
    (tmp_path / "run.toml").write_text('preset = "digits"\nepochs = 7\nchunk_size = 64\ntrackers = ["tensorboard"]\n')
    found = handed_over("--config", "run.toml", "--chunk-size", "32")
    assert (found["epochs"], found["chunk_size"], found["trackers"]) == (7, 32, ("tensorboard",))


def test_the_settings_of_a_run_are_in_its_folder(unjudged, tmp_path):
    assert unjudged(*DIGITS, "--workers", "0") == 0
    run = json.loads((tmp_path / "runs/digits/config.json").read_text())["run"]
    module = sys.modules["simclr_imagenet"]
    assert run.keys() >= {field.name for field in fields(module.Config)}
    assert (run["preset"], run["workers"], run["width"], run["temperature"]) == ("digits", 0, 0.0625, 0.5)


def test_printed_settings_are_a_file_of_settings(script, tmp_path, capsys):
    assert script("--lr", "0.3", "--print-config") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^lr = 0.3 +# flag$", printed, re.MULTILINE)
    (tmp_path / "run.toml").write_text(printed)
    assert script("--config", "run.toml", "--print-config") == 0
    again = capsys.readouterr().out
    assert [line.split(" #")[0] for line in again.splitlines()] == [
        line.split(" #")[0] for line in printed.splitlines()
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_folder_of_jpegs_goes_through_both_phases(script, images, tmp_path, capsys):
    assert script("--data", images, *FOLDERS) == 0
    printed = capsys.readouterr().out
    assert "| frozen features | top-1 | top-5 |" in printed
    assert "| SimCLR encoder | " in printed
    assert load_file(tmp_path / "runs/imagenet/encoder.safetensors")["conv1.weight"].shape == (4, 3, 7, 7)


def test_unreadable_images_are_left_out_of_both_phases_where_they_are_allowed(script, images, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    for path in (broken / "train" / "blue" / "0.jpg", broken / "val" / "red" / "3.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    assert script("--data", broken, *FOLDERS, "--no-baseline") == 2
    assert "0.jpg" in capsys.readouterr().err
    assert script("--data", broken, *FOLDERS, "--no-baseline", "--resume", "never", "--max-bad-images", "0.2") == 0
    assert "| SimCLR encoder | " in capsys.readouterr().out


def test_the_cifar_preset_takes_class_folders_too(script, images, capsys):
    words = ["--width", "0.0625", "--batch-size", "8", "--max-steps", "1", "--workers", "0", "--no-baseline"]
    assert script("--preset", "cifar10", "--data", images, *words) == 0
    printed = capsys.readouterr().out
    assert "randomly initialised" not in printed
    assert "| SimCLR encoder | " in printed


def shapes(path: Path) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_a_network_of_timm_goes_through_both_phases(name, script, images, tmp_path, capsys):
    assert script("--data", images, "--encoder", f"timm:{name}", *TIMM, "--no-baseline") == 0
    printed = capsys.readouterr().out
    assert "pretrained: step 2, " in printed
    assert "| SimCLR encoder | " in printed
    size = {"img_size": 32} if name.startswith("vit") else {}
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0, **size)
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert shapes(tmp_path / "runs/imagenet/encoder.safetensors") == expected


def test_a_network_of_timm_takes_grey_digits_under_the_stem_and_width_of_their_preset(script, monkeypatch):
    example = sys.modules["simclr_imagenet"]
    monkeypatch.setattr(sys, "argv", ["simclr_imagenet.py"])
    encoder = example.make_encoder(replace(example.DIGITS, encoder="timm:test_resnet"), channels=1)
    assert encoder.eval()(torch.zeros(2, 1, 16, 16)).shape == (2, encoder.feature_dim)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200])
def test_each_of_our_resnets_can_be_chosen(depth, script):
    example = sys.modules["simclr_imagenet"]
    config = replace(example.IMAGENET, encoder=f"resnet{depth}", width=1 / 32, stem="cifar")
    encoder = example.make_encoder(config, channels=1)
    assert {"depth": depth, "width": 1 / 32, "stem": "cifar", "in_channels": 1}.items() <= encoder.config.items()


def test_without_timm_its_networks_end_in_one_line_that_says_how_to_get_it(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert script("--encoder", "timm:resnet18") == 2
    error = capsys.readouterr().err
    assert error == "simclr_imagenet.py: error: `--encoder timm:NAME` needs timm: pip install timm.\n"
    assert not list(tmp_path.iterdir())


def make_bad(kind: str, images: Path, tmp_path: Path) -> tuple[list[object], str]:
    """Words of a command line and a part of the line it must end with."""
    data = tmp_path / "data"
    if kind in ("class folder without images", "file that is no image", "text in a class folder", "other classes"):
        subprocess.run(["cp", "-r", str(images), str(data)], check=True)
    if kind == "missing folder":
        return ["--data", data], f"there is no folder {data}"
    if kind == "missing val":
        (data / "train" / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(data / "train/a/0.png")
        return ["--data", data], f"there is no folder {data / 'val'}"
    if kind == "empty folder":
        (data / "train").mkdir(parents=True)
        return ["--data", data], f"{data / 'train'} holds no folders"
    if kind == "class folder without images":
        (data / "train" / "green").mkdir()
        return ["--data", data], f"{data / 'train' / 'green'} holds none"
    if kind == "file that is no image":
        (data / "val" / "red" / "0.jpg").write_text("<html>not found</html>")
        return ["--data", data], f"{data / 'val/red/0.jpg'} is none"
    if kind == "text in a class folder":
        (data / "val" / "red" / "notes.txt").write_text("x")
        return ["--data", data], f"{data / 'val/red/notes.txt'} has not the name of one"
    if kind == "other classes":
        (data / "val" / "red").rename(data / "val" / "rot")
        return ["--data", data], "must have the same class folders, only one has: ['red', 'rot']"
    if kind == "unwritable out":
        (tmp_path / "file").write_text("")
        return ["--out", tmp_path / "file" / "run"], f"{tmp_path / 'file' / 'run'}: Not a directory"
    if kind == "misspelt setting in a file":
        (tmp_path / "run.toml").write_text("batchsize = 8")
        return [
            "--config",
            tmp_path / "run.toml",
        ], f"`batchsize` in {tmp_path / 'run.toml'} is no setting, did you mean"
    return {
        "fewer images than a batch": (["--batch-size", 4096], "at most the number of images, 1297, got 4096"),
        "batch below 2": (["--batch-size", 1], "at least 2 (one image has no negatives), got 1"),
        "unknown preset": (["--preset", "imagnet"], "must be 'imagenet', 'cifar10' or 'digits', got 'imagnet'"),
        "unknown flag": (["--batchsize", 8], "unrecognized arguments: --batchsize 8, did you mean --batch-size?"),
        "no file of settings": (["--config", "none.toml"], "none.toml: No such file or directory"),
        "preset without data": (["--preset", "cifar10"], "needs --data DIR"),
        "data with digits": (["--preset", "digits", "--data", images], "must be left out"),
        "resume from nowhere": (["--resume", tmp_path], "got " + str(tmp_path)),
        "no epochs": (["--epochs", 0], "`epochs` must be at least 1, got 0"),
        "no epochs to judge by": (["--eval-epochs", 0], "`eval_epochs` must be positive, got 0"),
        "warm-up beyond the run": (["--epochs", 3], "`warmup_epochs` must be at most `epochs`, 3, got 5"),
        "fp16 on a CPU": (["--mixed-precision", "fp16"], "'fp16' needs a CUDA device"),
        "unknown encoder": (
            ["--encoder", "resnet19"],
            "`--encoder` must be one of resnet18, resnet34, resnet50, resnet101, resnet152, resnet200 or timm:NAME, "
            "got resnet19.",
        ),
        "unknown network of timm": (
            ["--encoder", "timm:vit_tiny_patch16_242"],
            f"timm {timm.__version__} has no model 'vit_tiny_patch16_242', the nearest: vit_tiny_patch16_224, ",
        ),
        "network like none of timm": (["--encoder", "timm:"], "has no model '', the nearest: none."),
        "width for timm": (
            ["--encoder", "timm:resnet18", "--width", 0.25],  # the preset's, which is not timm's either
            "`--width` and `--stem` are of our ResNets, --encoder timm:resnet18 has its own.",
        ),
        "stem for timm": (["--encoder", "timm:resnet18", "--stem=cifar"], "--encoder timm:resnet18 has its own."),
        "images below a patch": (
            ["--encoder", "timm:test_vit", "--image-size", 8],
            "`module` must take images of shape (2, 1, 8, 8), which come of `image_size` and `in_channels`; "
            "VisionTransformer raised AssertionError('Input height (8) should be divisible by patch size (16).').",
        ),
        "no temperature": (["--temperature", 0], "`temperature` must be positive, got 0"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *["missing folder", "missing val", "empty folder", "class folder without images", "file that is no image"],
        *["text in a class folder", "other classes", "unwritable out", "fewer images than a batch", "batch below 2"],
        *["unknown preset", "unknown flag", "preset without data", "data with digits", "resume from nowhere"],
        *["no file of settings", "misspelt setting in a file"],
        *["no epochs", "no epochs to judge by", "warm-up beyond the run", "fp16 on a CPU", "no temperature"],
        *["unknown encoder", "unknown network of timm", "network like none of timm", "width for timm"],
        *["stem for timm", "images below a patch"],
    ],
)
def test_bad_input_ends_in_one_line_and_code_2(kind, script, images, tmp_path, capsys):
    words, line = make_bad(kind, images, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert script(*words) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("simclr_imagenet.py: error: ")
    assert line in error[0]
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


@pytest.mark.parametrize("value", ["2", "many"])
def test_a_world_size_that_is_not_honoured_ends_in_one_line_and_code_2(value, script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert script(*DIGITS) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "WORLD_SIZE" in error[0]
    assert not list(tmp_path.iterdir())


def launch(*command: object, cwd: Path, timeout: float) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, timeout=timeout, text=True, env=plain, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_accelerate_launch_runs_the_script_on_all_cores(tmp_path):
    binary = Path(sys.executable).with_name("accelerate")
    printed = launch(binary, "launch", SCRIPT, *DIGITS, "--no-baseline", cwd=tmp_path, timeout=120)
    assert printed.count("world=1 backend=none device=") == 1
    assert f"threads={len(os.sched_getaffinity(0))}" in printed
    assert "| SimCLR encoder | 0." in printed


COUNT_THREADS = """
import atexit, pathlib, runpy, sys

@atexit.register  # the first one, so the last to run
def count():
    names = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
    sys.stdout.write(f"gloo threads at exit: {sum('gloo' in name for name in names)}\\n")

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_processes_train_and_judge_together(images, tmp_path):
    """Each phase on two gloo processes; one table, and the checkpoint says how it came about.

    No thread of gloo is left as Python ends: one that is at times aborts the process.
    """
    binary = Path(sys.executable).with_name("torchrun")
    (tmp_path / "counted.py").write_text(COUNT_THREADS)
    words = [SCRIPT, "--data", images, *FOLDERS, "--no-baseline", "--trackers", "tensorboard"]
    printed = launch(*[binary, "--standalone", "--nproc_per_node", 2, "counted.py", *words], cwd=tmp_path, timeout=180)
    assert printed.count("world=2 backend=gloo") == 2  # training and linear evaluation
    assert printed.count("| SimCLR encoder | ") == 1
    assert printed.count("gloo threads at exit: 0") == 2
    assert json.loads((tmp_path / "runs/imagenet/config.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "runs/imagenet/tensorboard").glob("*/events*"))) == 1  # the main process's
