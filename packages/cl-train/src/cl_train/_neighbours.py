"""A picture of nearest neighbours: which images the features take for alike. Needs matplotlib (`cl-train[plots]`)."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._labels import check_all_labelled
from cl_train._unit_rows import unit_rows

# The sheet is measured in sides of a cell, y downwards.
_INCHES = 0.8
_STEP = 1.16  # from a cell to the next
_FIRST = 1.4  # from the left of the query to the left of its nearest image
_TOP = 0.95  # above the first row: two lines of text
_LETTER = 0.105  # of the names of classes, left of the queries
_LINE = 5.6  # what the lines above need from the nearest images on
_PIXELS = 256  # the side an image is shrunk to: a cell has 120 at 150 dpi

_SAME, _OTHER, _PLAIN = "#009E73", "#D55E00", "#8C8C8C"  # of Okabe and Ito, told apart by colour-blind readers


def plot_neighbours(
    features: Tensor,
    dataset: ImageDataset,
    path: str | Path,
    *,
    queries: int = 8,
    neighbours: int = 8,
    seed: int = 0,
) -> None:
    """Write a sheet with one row per query: the image, and the other images whose features are nearest by cosine.

    Queries are drawn at random; with labels they come from as many classes as they can, and stand in order of class.
    The frame of an image of its query's class is then thin and green, that of another thick, dashed and red, and the
    title has the share of the former among all shown.

    Args:
        features: One row for each image of the data set, (n, d), n >= 2; normalised here. The similarities of the
            queries alone are computed, (queries, n).
        dataset: The images, of any sizes, with 1 or 3 channels; only those shown are read.
        path: PNG file to write.
        queries: Rows, >= 1; n if there are fewer images.
        neighbours: Images beside each query, >= 1; n - 1 if there are fewer.
        seed: Seed of the choice of queries.

    Raises:
        InputError: `features` is not finite, or not one row for each image; a number is out of its range; an image
            cannot be read, or has other channels.
        OSError: The file cannot be written.
    """
    for name, value in (("queries", queries), ("neighbours", neighbours)):
        if value < 1:
            raise InputError(f"`{name}` must be at least 1, got {value}.")
    x = unit_rows(features, least=2)
    if len(x) != len(dataset):
        raise InputError(f"`features` must have one row for each of the {len(dataset)} images, got {len(x)}.")
    if dataset.labels is not None:
        check_all_labelled(dataset.labels, name="dataset")
    chosen = _choose(len(x), dataset.labels, queries, seed=seed)
    similarity = x[chosen] @ x.T
    similarity[torch.arange(len(chosen)), chosen] = -torch.inf
    nearest = similarity.argsort(dim=1, descending=True, stable=True)[:, : min(neighbours, len(x) - 1)]
    _write(dataset, chosen, nearest, path)


def _choose(n: int, labels: Tensor | None, queries: int, *, seed: int) -> Tensor:
    """Numbers of the queries: in random order, every class once before any has its second."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        return order[:queries]
    y = labels[order]
    by_class = y.argsort(stable=True)
    sizes = y.bincount()
    turns = torch.empty_like(order)  # how many of its class stand before it
    turns[by_class] = torch.arange(n) - (sizes.cumsum(0) - sizes)[y[by_class]]
    chosen = order[turns.argsort(stable=True)[:queries]]
    return chosen[labels[chosen].argsort(stable=True)]


def _write(dataset: ImageDataset, chosen: Tensor, nearest: Tensor, path: str | Path) -> None:
    from matplotlib.figure import Figure

    labels = dataset.labels
    names = _names(dataset, chosen)
    left = -0.25 - _LETTER * max(len(line) for name in names for line in name.split("\n"))
    right = max(_FIRST + nearest.shape[1] * _STEP, _FIRST + _LINE)
    bottom = len(chosen) * _STEP
    figure = Figure(figsize=(_INCHES * (right - left), _INCHES * (bottom + _TOP)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    for row, (query, others) in enumerate(zip(chosen.tolist(), nearest.tolist(), strict=True)):
        y = row * _STEP
        _show(axis, dataset.read(query), 0, y, colour=_PLAIN)
        axis.text(-0.15, y + 0.5, names[row], fontsize=10, ha="right", va="center", parse_math=False)
        for column, other in enumerate(others):
            strange = labels is not None and bool(labels[other] != labels[query])
            colour = _PLAIN if labels is None else _OTHER if strange else _SAME
            _show(axis, dataset.read(other), _FIRST + column * _STEP, y, colour=colour, dashed=strange)

    title, legend = f"{len(chosen)} images and those nearest to them", ""
    if labels is not None:
        same = int((labels[nearest] == labels[chosen][:, None]).sum())
        title = (
            f"{same} of {nearest.numel()} neighbours ({100 * same / nearest.numel():.0f} %) are of the query's class"
        )
        legend = " (dashed: of another class)"
    axis.text(0, -0.66, title, fontsize=12, va="center")
    axis.text(0, -0.24, "query", fontsize=10, va="center")
    axis.text(_FIRST, -0.24, f"nearest other images by cosine{legend}", fontsize=10, va="center")
    # last, as every image sets them anew
    axis.set(xlim=(left, right), ylim=(bottom, -_TOP), aspect="auto")
    figure.savefig(path, dpi=150)


def _show(axis: Any, image: Tensor, x: float, y: float, *, colour: str, dashed: bool = False) -> None:
    """One cell: the whole image in its middle, and a frame."""
    from matplotlib.patches import Rectangle

    picture = _shrunk(image)
    height, width = (side / max(picture.shape[1:]) for side in picture.shape[1:])
    x0, y0 = x + (1 - width) / 2, y + (1 - height) / 2
    pixels = picture.permute(1, 2, 0).squeeze(-1).numpy()
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=(x0, x0 + width, y0 + height, y0))
    line = {"linewidth": 2.6, "linestyle": (0, (2.5, 1.2))} if dashed else {"linewidth": 1.6}
    axis.add_patch(Rectangle((x - 0.03, y - 0.03), 1.06, 1.06, fill=False, edgecolor=colour, **line))


def _shrunk(image: Tensor) -> Tensor:
    """The image as float in [0, 1], no larger than it can be seen: a sheet of photographs would fill the memory."""
    if image.shape[0] not in (1, 3):
        raise InputError(f"images must have 1 or 3 channels to be drawn, got shape {tuple(image.shape)}.")
    picture = (image / 255 if image.dtype == torch.uint8 else image.float()).cpu()
    scale = _PIXELS / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(scale * side)) for side in picture.shape[1:]]
    return functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _names(dataset: ImageDataset, chosen: Tensor) -> list[str]:
    """Of the queries' classes, in short lines; empty without labels."""
    if dataset.labels is None or dataset.classes is None:
        return [""] * len(chosen)
    names = [dataset.classes[label] for label in dataset.labels[chosen].tolist()]
    return ["\n".join(textwrap.wrap(name, 15, max_lines=4, placeholder=" …")) for name in names]
