"""A map of features: images that are near each other lie near each other. Needs matplotlib (`cl-train[plots]`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cl_train._errors import InputError
from cl_train._labels import check_labels
from cl_train._unit_rows import unit_rows

# Muted colours of Paul Tol, and black: ten that colour-blind readers tell apart. Class c has colour c % 10 and shape
# c % 4, so that 20 classes have a mark each.
_COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77"),
    *("#882255", "#44AA99", "#000000", "#AA4499", "#999933"),
)
_SHAPES = "o^sD"
_MARKS = 20
_PERPLEXITY = 30  # scikit-learn's default
_DIMS = 50  # of van der Maaten and Hinton, 2008, section 4.1: less noise, faster


def plot_map(
    features: Tensor,
    path: str | Path,
    *,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    domains: Tensor | None = None,
    domain_names: Sequence[str] | None = None,
    method: Literal["tsne", "pca"] = "tsne",
    points: int = 2000,
    seed: int = 0,
) -> None:
    """Write a picture of features in two dimensions, with colour and shape by class where labels are given.

    With domains too, colour is by class and shape by domain, the first domain's marks hollow; the legend then names the
    classes where there are at most 10, a colour for each.

    Rows are normalised, so that distance is that of cosines. "tsne" takes their first 50 principal components to
    scikit-learn's t-SNE at perplexity 30 (less below 91 points), which begins at the first two components and so
    draws the same map again; it shows who is near to whom, while sizes of groups and distances between them say little.
    "pca" draws the first two components. The map has no axes: its unit means nothing.

    Args:
        features: Shape (n, d), n >= 3.
        path: PNG file to write.
        labels: Class of each row, integers in 0 ... number of classes - 1, shape (n,).
        classes: Names of the classes, for the legend; by default their numbers. There is no legend for more than 20
            classes, and then they share colours.
        domains: Domain of each row, integers from 0, at most 4 of them, shape (n,); only with labels.
        domain_names: Their names, for the legend; by default their numbers.
        method: "tsne" (needs scikit-learn, `cl-train[data]`) or "pca".
        points: Rows drawn, chosen at random, >= 3; n if there are fewer.
        seed: Seed of the choice.

    Raises:
        InputError: Features, labels or classes do not fit together, or an argument is none of these; scikit-learn is
            missing.
        OSError: The file cannot be written.
    """
    if method not in ("tsne", "pca"):
        raise InputError(f"`method` must be 'tsne' or 'pca', got {method!r}.")
    if points < 3:
        raise InputError(f"`points` must be at least 3, got {points}.")
    x = unit_rows(features, least=3)
    if labels is not None:
        labels, names = check_labels(labels.cpu(), classes, n=len(x))
    elif classes is not None:
        raise InputError("`classes` are names for `labels`, which must be given with them, got None.")
    if domains is None and domain_names is not None:
        raise InputError("`domain_names` are names for `domains`, which must be given with them, got None.")
    where = None if domains is None else _check_domains(domains.cpu(), domain_names, labels)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:points]
    components, share = _principal_components(x[chosen])
    plane = components[:, :2] if method == "pca" else _tsne(components)
    how = "t-SNE" if method == "tsne" else f"PCA, {100 * share:.0f} % of the variance"
    title = f"features of {len(chosen):,} images ({how})"
    if labels is None:
        _write(plane, None, [], title, path)
    elif where is not None:
        _write_domains(plane, labels[chosen], names, where[0][chosen], where[1], title, path)
    else:
        _write(plane, labels[chosen], names, title, path)


def _check_domains(domains: Tensor, names: Sequence[str] | None, labels: Tensor | None) -> tuple[Tensor, list[str]]:
    if labels is None:
        raise InputError("`domains` must come with `labels`, got None.")
    if domains.shape != labels.shape or domains.is_floating_point():
        raise InputError(
            f"`domains` must be integers of shape ({len(labels)},), got {domains.dtype} {tuple(domains.shape)}."
        )
    if int(domains.min()) < 0:
        raise InputError(f"`domains` must be at least 0, got {int(domains.min())}.")
    count = int(domains.max()) + 1
    if count > len(_SHAPES):
        raise InputError(f"`domains` must be at most {len(_SHAPES)}, got {count}.")
    given = [str(d) for d in range(count)] if names is None else [str(name) for name in names]
    if len(given) < count:
        raise InputError(f"`domain_names` must be {count} names, got {len(given)}.")
    return domains.long(), given


def _principal_components(x: Tensor) -> tuple[Tensor, float]:
    """The first 50 components of rows, at least two, (n, 50), and the share of the variance of the first two."""
    centred = x.double() - x.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    # the sign of a component is arbitrary, and not the same in all libraries
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    components = (u * s * largest.sign())[:, :_DIMS]
    if components.shape[1] == 1:
        components = torch.cat([components, torch.zeros_like(components)], dim=1)
    variance = s.square()
    return components, float(variance[:2].sum() / variance.sum()) if bool(variance.sum() > 0) else 1.0


def _tsne(components: Tensor) -> Tensor:
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise InputError("`method` 'tsne' needs scikit-learn: pip install 'cl-train[data]'; or 'pca'.") from error
    # scikit-learn's init="pca", without its random numbers; all rows equal stay where they are
    start = 1e-4 * components[:, :2] / components[:, 0].std().clamp_min(1e-12)
    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=start.float().numpy(), random_state=0)
    # several threads add in any order, and t-SNE makes of the last bit another map
    with threadpool_limits(limits=1):
        return torch.from_numpy(tsne.fit_transform(components.float().numpy()))


def _sheet(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axis = figure.subplots()
    axis.set(xticks=[], yticks=[])
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_title(title, fontsize=12)
    axis.spines[:].set_color("#BBBBBB")
    return figure, axis


def _write_domains(
    plane: Tensor,
    labels: Tensor,
    names: list[str],
    domains: Tensor,
    domain_names: list[str],
    title: str,
    path: str | Path,
) -> None:
    figure, axis = _sheet(title)
    for domain in domains.unique().tolist():
        for label in labels[domains == domain].unique().tolist():
            chosen, colour = (domains == domain) & (labels == label), _COLOURS[label % 10]
            style = {"facecolors": "none", "edgecolors": colour, "linewidths": 0.9} if domain == 0 else {"c": colour}
            x, y = plane[chosen].numpy().T
            axis.scatter(x, y, s=20 if domain == 0 else 16, marker=_SHAPES[domain], alpha=0.8, **style)
    handles, texts = [], []
    for domain in domains.unique().tolist():
        style = {"facecolors": "none", "edgecolors": "#444444"} if domain == 0 else {"c": "#444444"}
        handles.append(axis.scatter([], [], s=20, marker=_SHAPES[domain], **style))
        texts.append(domain_names[domain])
    if len(names) <= 10:
        for label in labels.unique().tolist():
            handles.append(axis.scatter([], [], s=20, marker="s", c=_COLOURS[label % 10]))
            texts.append(names[label])
    _legend(figure, handles, texts)
    figure.savefig(path, dpi=150)


def _legend(figure: Any, handles: list[Any], names: list[str]) -> None:
    legend = figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=10, markerscale=1.7)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _write(plane: Tensor, labels: Tensor | None, names: list[str], title: str, path: str | Path) -> None:
    figure, axis = _sheet(title)
    if labels is None:
        _scatter(axis, plane, colour=_COLOURS[0], shape="o")
    else:
        marks = labels % _MARKS
        drawn = marks.unique().tolist()
        handles = [
            _scatter(axis, plane[marks == mark], colour=_COLOURS[mark % 10], shape=_SHAPES[mark % 4]) for mark in drawn
        ]
        if len(names) <= _MARKS:
            _legend(figure, handles, [names[mark] for mark in drawn])
    figure.savefig(path, dpi=150)


def _scatter(axis: Any, points: Tensor, *, colour: str, shape: str) -> Any:
    x, y = points.numpy().T
    return axis.scatter(x, y, s=14, c=colour, marker=shape, alpha=0.8, linewidths=0)
