"""Pictures of a run: what the network is shown, and how the training went. Needs matplotlib (`cl-train[plots]`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    """Write a picture of the loss, and of the online probe's accuracy if it was logged, over the epochs.

    Args:
        history: Entries as in `PretrainResult.history`, at least one.
        path: PNG file to write.
        chance: Accuracy of guessing, drawn as a line, in [0, 1].
    """
    from matplotlib.figure import Figure

    with_probe = "probe_top1" in history[0]
    figure = Figure(figsize=(9 if with_probe else 5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2 if with_probe else 1, squeeze=False)[0]
    epochs = [entry["epoch"] for entry in history]
    axes[0].plot(epochs, [entry["loss"] for entry in history], color="tab:blue")
    axes[0].set(xlabel="epoch", ylabel="loss (nats)", title="contrastive loss")
    if with_probe:
        axes[1].plot(epochs, [100 * entry["probe_top1"] for entry in history], color="tab:green")
        if chance is not None:
            axes[1].axhline(100 * chance, color="grey", linestyle=":", label="guessing")
            axes[1].legend(loc="lower right")
        axes[1].set(xlabel="epoch", ylabel="top-1 on training views (%)", title="online linear probe", ylim=(0, 100))
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
