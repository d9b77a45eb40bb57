"""Pictures of a run: what the network is shown, and how the training went. Needs matplotlib (`cl-train[plots]`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_train._errors import InputError

# Of Okabe and Ito: told apart by colour-blind readers.
_BLUE, _GREEN, _RED, _PURPLE = "#0072B2", "#009E73", "#D55E00", "#CC79A7"

# What the log calls accuracies: label, colour, dashes.
_ACCURACIES = {
    "probe_top1": ("online probe, on views", _GREEN, "-"),
    "contrast_top1": ("own second view among others", _RED, "--"),
    "top1": ("class, on training views", _BLUE, "-"),
}


def plot_views(images: Tensor, view_a: Tensor, view_b: Tensor, path: str | Path) -> None:
    """Write a picture with one column per image: the image, and its two views below it.

    Args:
        images: (n, c, h, w), uint8 or float in [0, 1], c = 1 or 3.
        view_a: First views, (n, c, size, size), float in [0, 1].
        view_b: Second views, likewise.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    images = images / 255 if images.dtype == torch.uint8 else images
    rows = {"image": images, "view a": view_a, "view b": view_b}
    figure = Figure(figsize=(0.8 * len(images) + 0.6, 2.6), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures.float().cpu(), strict=True):
            axis.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name)
    figure.savefig(path, dpi=150)


def plot_history(history: Sequence[dict[str, Any]], path: str | Path, *, chance: float | None = None) -> None:
    """Write a picture of the log over the epochs, with a panel for each: loss, accuracies, effective rank.

    The panel of accuracies shows "probe_top1", "contrast_top1" and "top1", that of the rank "effective_rank"; what no
    entry holds is left out, and a curve passes by the entries that lack it.

    Args:
        history: Entries as in `PretrainResult.history`, at least one, each with "epoch" and "loss".
        path: PNG file to write.
        chance: Accuracy of guessing the class, drawn as a line, in [0, 1].

    Raises:
        InputError: There is no entry.
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    if not history:
        raise InputError("`history` must have at least one entry, got none.")
    logged = {name for entry in history for name in entry}
    accuracies = [name for name in _ACCURACIES if name in logged]
    panels = ["loss", *["accuracy"] * bool(accuracies), *["effective rank"] * ("effective_rank" in logged)]
    figure = Figure(figsize=(0.6 + 4.2 * len(panels), 3.2), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axis.set_title(panel, fontsize=12)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if panel == "loss":
            _curve(axis, history, "loss", color=_BLUE)
        elif panel == "accuracy":
            _draw_accuracies(axis, history, accuracies, chance)
        else:
            _curve(axis, history, "effective_rank", color=_PURPLE)
            axis.set(ylabel="dimensions in use", ylim=(0, None))
    figure.savefig(path, dpi=150)


def _draw_accuracies(axis: Any, history: Sequence[dict[str, Any]], names: list[str], chance: float | None) -> None:
    for name in names:
        label, colour, dashes = _ACCURACIES[name]
        _curve(axis, history, name, scale=100, label=label, color=colour, linestyle=dashes)
    if chance is not None:
        axis.axhline(100 * chance, color="grey", linestyle=":", label="guessing the class")
    axis.set(ylabel="top-1 (%)", ylim=(0, 103))
    axis.legend(loc="best", fontsize=9)


def _curve(axis: Any, history: Sequence[dict[str, Any]], name: str, *, scale: float = 1, **style: Any) -> None:
    found = [(entry["epoch"], scale * entry[name]) for entry in history if name in entry]
    # a few points are seen as such; one alone makes no line
    axis.plot(*zip(*found, strict=True), marker="o" if len(found) <= 20 else None, markersize=3.5, **style)
