"""The examples that go on from a run, or have stages: tiny settings, on the embedded digits."""

import json
import re

import pytest

TINY = ["--epochs", "1", "--warmup-epochs", "0", "--width", "0.25", "--batch-size", "128", "--max-steps", "2"]


def rows(printed: str) -> dict[str, list[float]]:
    """The table: name of each row and its figures."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return {name: [float(re.match(r"[\d.]+", cell)[0]) for cell in cells] for name, *cells in lines[2:]}


@pytest.fixture
def run(load_example, monkeypatch, capsys):
    """A finished run of simclr_imagenet.py, in runs/digits."""
    script = load_example("simclr_imagenet")
    import simclr_imagenet

    with monkeypatch.context() as patch:  # neither judged nor drawn
        patch.setattr(simclr_imagenet, "few_label_table", lambda encoders, *_: {name: {} for name in encoders})
        patch.setattr(simclr_imagenet, "draw", lambda *_: None)
        assert script(*TINY) == 0
    capsys.readouterr()


def test_a_run_is_judged_by_every_protocol_beside_what_learnt_nothing(run, load_example, tmp_path, capsys):
    assert load_example("linear_eval")("--epochs", "1", "--max-steps", "2") == 0
    table = rows(capsys.readouterr().out)
    assert list(table) == ["raw pixels", "randomly initialised encoder", "SimCLR encoder"]
    assert {len(row) for row in table.values()} == {6}
    pixels = json.loads((tmp_path / "runs/digits/evaluation.json").read_text())["raw pixels"]
    assert list(pixels) == ["linear", "probe", "logistic", "kNN", "1 % of labels", "10 % of labels"]
    assert pixels["probe"] == pytest.approx(0.976, abs=0.01)
    assert table["raw pixels"][1] == pytest.approx(100 * pixels["probe"], abs=0.05)


def test_several_runs_are_judged_together(run, load_example, capsys):
    assert load_example("linear_eval")("--runs", "runs/digits", "runs/digits", "--judges", "knn") == 0
    assert "| SimCLR encoder | " in (printed := capsys.readouterr().out)
    assert printed.count("± 0.0 |") == 3  # a run does not deviate from itself


def test_a_folder_without_a_run_is_refused_by_each(load_example, capsys):
    for name, flag in (("linear_eval", "--runs"), ("finetune", "--run")):
        assert load_example(name)(flag, "nowhere") == 2
        assert (
            "nowhere must be the folder of a run of simclr_imagenet.py, there is no nowhere/config.json"
            in capsys.readouterr().err
        )


def test_a_run_is_fine_tuned_beside_its_like_from_scratch(run, load_example, tmp_path, capsys):
    words = ["--labels", "2", "0.1", "--epochs", "1", "--max-steps", "2"]
    assert load_example("finetune")(*words) == 0
    first = capsys.readouterr().out
    assert list(rows(first)) == ["2", "0.1"]
    assert "| labels | from scratch | fine-tuned |" in first
    assert (tmp_path / "runs/digits/tuned-0.1-fine-tuned/classifier.safetensors").stat().st_size > 0
    assert load_example("finetune")(*words) == 0  # finished: judged again
    assert capsys.readouterr().out == first


def test_fine_tuning_does_not_go_on_with_another_rate(run, load_example, capsys):
    words = ["--labels", "2", "--epochs", "1", "--max-steps", "1", "--no-scratch"]
    assert load_example("finetune")(*words) == 0
    capsys.readouterr()
    assert load_example("finetune")(*words, "--lr", "0.3") == 2
    assert "this one has lr=0.3" in capsys.readouterr().err


def test_version_2_goes_through_its_stages_and_repeats_none(load_example, tmp_path, capsys):
    words = [*TINY, "--labels", "2", "--tune-epochs", "1", "--distill-epochs", "1"]
    assert load_example("simclr_v2")(*words) == 0
    first = capsys.readouterr()
    assert (
        "| labels | pretrained, fine-tuned | student, distilled | from scratch | student, from scratch |" in first.out
    )
    out = tmp_path / "runs" / "digits-v2"
    for stage in ("2-fine-tuned", "2-student-distilled", "2-from-scratch", "2-student-from-scratch"):
        assert (out / stage / "classifier.safetensors").stat().st_size > 0
    assert json.loads((out / "results.json").read_text())["2"]["from scratch"] == pytest.approx(
        rows(first.out)["2"][2], abs=1e-3
    )
    assert load_example("simclr_v2")(*words, "--distill-lr", "0.2") == 2  # of the third stage: the others went on
    assert "2-student-distilled" in capsys.readouterr().err
