"""Pictures: they are written, are PNG, and show what they were given."""

import numpy as np
import pytest
import torch
from _pixels import pixels, shows
from cl_train import InputError, plot_history, plot_views

BLUE, GREEN, RED, PURPLE = (0, 114, 178), (0, 158, 115), (213, 94, 0), (204, 121, 167)


def plain(colour: tuple[float, float, float], n=3, size=4) -> torch.Tensor:
    return torch.tensor(colour).reshape(1, 3, 1, 1).expand(n, 3, size, size)


def history(n=5, *, probe=True) -> list[dict]:
    entries = [{"step": i, "epoch": i / 2, "lr": 0.1, "loss": 3.0 / i} for i in range(1, n + 1)]
    return [entry | ({"probe_top1": 0.1 * entry["step"]} if probe else {}) for entry in entries]


def test_views_of_colour_images_show_the_colours_of_each_row(tmp_path):
    plot_views(plain((1, 0, 0)), plain((0, 1, 0), size=8), plain((0, 0, 1), size=8), tmp_path / "v.png")
    picture = pixels(tmp_path / "v.png")
    rows = [next(y for y in range(len(picture)) if shows(picture[y : y + 20], c)) for c in np.eye(3) * 255]
    assert rows == sorted(rows)
    assert len(set(rows)) == 3


def test_views_of_grey_images_are_grey(tmp_path):
    shades = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).expand(2, 1, 8, 8)
    plot_views(shades, shades, shades, tmp_path / "v.png")
    picture = pixels(tmp_path / "v.png")
    assert np.ptp(picture, axis=2).max() == 0
    assert len(np.unique(picture)) > 32


def test_a_dark_grey_image_is_not_stretched_to_white(tmp_path):
    dark = torch.full((1, 1, 4, 4), 0.2)
    dark[..., 0, 0] = 0.25
    plot_views(dark, dark, dark, tmp_path / "v.png")
    assert shows(pixels(tmp_path / "v.png"), (51, 51, 51))


def test_uint8_images_look_as_their_floats(tmp_path):
    whole = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plot_views(whole, whole / 255, whole / 255, tmp_path / "a.png")
    plot_views(whole / 255, whole / 255, whole / 255, tmp_path / "b.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_views_of_one_image_can_be_drawn(tmp_path):
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plot_views(image, image, image, tmp_path / "v.png")
    assert pixels(tmp_path / "v.png").std() > 0


@pytest.mark.parametrize("probe", [True, False])
def test_a_history_is_drawn(tmp_path, probe):
    plot_history(history(probe=probe), tmp_path / "h.png")
    assert shows(pixels(tmp_path / "h.png"), BLUE)


def test_a_history_with_a_probe_has_a_second_curve(tmp_path):
    plot_history(history(), tmp_path / "with.png")
    plot_history(history(probe=False), tmp_path / "without.png")
    assert shows(pixels(tmp_path / "with.png"), GREEN)
    assert not shows(pixels(tmp_path / "without.png"), GREEN)


def test_the_accuracy_of_guessing_is_drawn_when_given(tmp_path):
    plot_history(history(), tmp_path / "with.png", chance=0.5)
    plot_history(history(), tmp_path / "without.png")
    assert not np.array_equal(pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png"))


def test_the_contrasts_accuracy_is_drawn_beside_the_probes_when_it_was_logged(tmp_path):
    plot_history([entry | {"contrast_top1": 0.3} for entry in history()], tmp_path / "both.png")
    plot_history(history(), tmp_path / "probe.png")
    assert shows(pixels(tmp_path / "both.png"), GREEN)
    assert shows(pixels(tmp_path / "both.png"), RED)
    assert not shows(pixels(tmp_path / "probe.png"), RED)


def test_the_accuracy_of_training_with_labels_is_drawn(tmp_path):
    plot_history(history(probe=False), tmp_path / "without.png")
    plot_history([entry | {"top1": 0.3} for entry in history(probe=False)], tmp_path / "with.png")
    assert pixels(tmp_path / "with.png").shape[1] > 1.5 * pixels(tmp_path / "without.png").shape[1]


def test_there_is_a_panel_of_the_rank_only_when_it_was_logged(tmp_path):
    plot_history(history(), tmp_path / "without.png")
    plot_history([*history(4), history()[-1] | {"effective_rank": 7.0}], tmp_path / "with.png")
    assert pixels(tmp_path / "with.png").shape[1] > 1.3 * pixels(tmp_path / "without.png").shape[1]
    assert (np.abs(pixels(tmp_path / "with.png") - np.array(PURPLE)).max(-1) <= 2).sum() > 10  # one point
    assert not shows(pixels(tmp_path / "without.png"), PURPLE)


def test_a_curve_passes_by_entries_that_lack_it(tmp_path):
    whole = [entry | {"effective_rank": float(entry["step"])} for entry in history()]
    plot_history(whole, tmp_path / "whole.png")
    gaps = [entry for entry in whole if entry["step"] in (1, 5)]
    plot_history([gaps[0], *history()[1:4], gaps[1]], tmp_path / "gaps.png")
    assert shows(pixels(tmp_path / "gaps.png"), PURPLE)  # a line between the two, which are on the same one


def test_a_history_without_entries_cannot_be_drawn(tmp_path):
    with pytest.raises(InputError, match=r"^`history` must have at least one entry, got none\.$"):
        plot_history([], tmp_path / "h.png")


def test_a_history_of_one_entry_can_be_drawn(tmp_path):
    plot_history(history(1), tmp_path / "h.png")
    assert pixels(tmp_path / "h.png").std() > 0


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_may_be_text(tmp_path, as_text):
    path = tmp_path / "h.png"
    plot_history(history(), str(path) if as_text else path)
    assert path.is_file()
