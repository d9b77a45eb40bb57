"""The example of synthetic and real digits: its fonts, what it draws of them, and that it runs."""

import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from cl_train import InputError
from PIL import Image, ImageDraw, ImageFont

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
ROWS = ["cross entropy", "cross-domain loss, before matching", "cross-domain loss, classes matched"]


@pytest.fixture
def script(load_example, monkeypatch):
    """Run the script in this process with the given words; returns the exit code."""
    run = load_example("synthetic_to_real")
    module = sys.modules["synthetic_to_real"]
    monkeypatch.setattr(module, "use_all_cores", lambda: None)  # of tensors this small, threads wait for each other
    return run


@pytest.fixture
def example(script):
    """The script as a module."""
    return sys.modules["synthetic_to_real"]


def test_three_networks_are_trained_and_judged(script, example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "draw_map", _by_components(example.plot_map, example))
    words = ["--per-class", "60", "--epochs", "1", "--matched-epochs", "1", "--batch-size", "512"]
    assert script(*words, "--real-labels", "2", "--out", "run") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^600 synthetic images from \d+ fonts, 1297 real ones$", printed, re.MULTILINE)
    table = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(table) == ROWS
    for row, values in table.items():
        assert values.keys() == {"real test images", "retrieval@1", "domains told apart"}
        assert all(0 < value <= 1 for value in values.values())
        assert f"| {row} | {values['real test images']:.3f} | {values['retrieval@1']:.3f} | " in printed
    given, right = re.search(r"^(\d+) real images were given a class, ([\d.]+)% the right one", printed, re.M).groups()
    assert 0.7 * 1297 <= int(given) <= 0.7 * 1297 + 21  # those with a label are given theirs, sure or not
    assert 10 < float(right) <= 100
    for name in ("domains.png", "before.png", "after.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert min(picture.size) > 200
    for name in ("cross entropy", "before", "after"):
        assert (tmp_path / "run" / name / "metrics.jsonl").is_file()


def _by_components(plot_map, example):
    """The map by principal components, as t-SNE takes longer than all the rest."""

    def draw_map(encoder, synthetic, test, path):
        shown = [
            example.extract_features(encoder, data, transform=example.EvalTransform(16))[0]
            for data in (synthetic, test)
        ]
        x = torch.cat([features[:200] for features in shown])
        domains = torch.arange(2).repeat_interleave(200)
        plot_map(x, path, labels=torch.arange(400) % 10, domains=domains, domain_names=["a", "b"], method="pca")

    return draw_map


def test_fonts_without_digits_are_left_out(example):
    found = {path.stem for path in example.fonts_in(FONTS)}
    assert {"DejaVuSans", "STIXGeneral", "cmr10", "cmss10", "cmtt10"} <= found
    assert not found & {"cmsy10", "cmex10", "LastResortHE-Regular", "STIXSizOneSymReg"}


def test_digits_of_every_font_that_is_taken_look_alike(example):
    """Ink lies nearest to the mean of its own digit; that of slanted figures does so less often, other signs not."""
    inks = torch.stack([torch.stack([_ink(path, digit) for digit in range(10)]) for path in example.fonts_in(FONTS)])
    centred = torch.nn.functional.normalize((inks - inks.mean((0, 1))).flatten(2), dim=2)
    nearest = torch.einsum("fdp,cp->fdc", centred, torch.nn.functional.normalize(centred.mean(0), dim=1)).argmax(2)
    right = (nearest == torch.arange(10)).double().mean(1)
    assert len(right) >= 20
    assert right.min() >= 0.4  # cmti10, the most slanted; by chance 0.1
    assert (right > 0.8).sum() >= len(right) - 1


def _ink(path: Path, digit: int) -> torch.Tensor:
    font = ImageFont.truetype(str(path), 64)
    box = tuple(map(int, font.getbbox(str(digit))))
    glyph = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    ImageDraw.Draw(glyph).text((-box[0], -box[1]), str(digit), fill=255, font=font)
    return torch.from_numpy(np.asarray(glyph.resize((16, 16)), np.float64).copy())


def test_a_folder_without_fonts_is_named(example, tmp_path):
    (tmp_path / "notes.txt").write_text("no font")
    message = f"`fonts` must be a folder of fonts (ttf, otf) that have digits, {tmp_path} has none."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        example.fonts_in(tmp_path)


def test_a_folder_of_fonts_without_digits_is_named_by_the_script(script, tmp_path, capsys):
    (tmp_path / "symbols").mkdir()
    (tmp_path / "symbols" / "cmsy10.ttf").write_bytes((FONTS / "cmsy10.ttf").read_bytes())
    assert script("--fonts", tmp_path / "symbols") == 2
    assert f"`fonts` must be a folder of fonts (ttf, otf) that have digits, {tmp_path}" in capsys.readouterr().err


def test_synthetic_digits_are_a_function_of_their_seed(example):
    fonts = example.fonts_in(FONTS)
    first, second, other = (example.render_digits(fonts, per_class=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(first.labels, other.labels)


def test_synthetic_digits_are_balanced_and_as_large_as_the_scans(example):
    found = example.render_digits(example.fonts_in(FONTS), per_class=7, seed=0)
    assert found.labels.bincount().tolist() == [7] * 10
    assert found.images.shape == (70, 1, 8, 8)
    assert found.images.dtype == torch.uint8
    spread = found.images.flatten(1).double().std(1)
    assert spread.min() > 20  # none is blank
