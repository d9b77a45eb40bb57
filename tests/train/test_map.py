"""The map of features: groups are seen as groups, in the colours of their classes."""

import sys

import numpy as np
import pytest
import torch
from _pixels import pixels
from cl_train import InputError, plot_map

METHODS = ["tsne", "pca"]
INDIGO, ROSE, GREEN = (51, 34, 136), (204, 102, 119), (17, 119, 51)  # of classes 0, 1 and 2


def groups(*, sizes=(30, 30), d=16, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows near the axes of space, a group each, and their classes."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    noise = torch.randn(len(labels), d, generator=torch.Generator().manual_seed(seed))
    return torch.eye(d)[labels] + 0.02 * noise, labels


def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels that points of a colour take, (pixels, 2), without the legend on the right; points are translucent."""
    inside = picture[:, : int(0.91 * picture.shape[1])]
    layers = [255 + (np.array(colour) - 255) * (1 - 0.2**points) for points in (1, 2, 10)]
    return np.argwhere(np.any([np.abs(inside - layer).max(-1) <= 3 for layer in layers], axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_groups_lie_apart_in_the_colours_of_their_classes(tmp_path, method):
    features, labels = groups()
    plot_map(features, tmp_path / "m.png", labels=labels, method=method)
    picture = pixels(tmp_path / "m.png")
    first, second = where(picture, INDIGO), where(picture, ROSE)
    apart = np.linalg.norm(first.mean(0) - second.mean(0))
    assert apart > 2 * max(first.std(0).max(), second.std(0).max())


@pytest.mark.parametrize("method", METHODS)
def test_the_length_of_features_is_irrelevant(tmp_path, method):
    features, labels = groups()
    plot_map(features, tmp_path / "a.png", labels=labels, method=method)
    plot_map(features * 2 ** (1 + labels[:, None]), tmp_path / "b.png", labels=labels, method=method)
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_features_give_the_same_map(tmp_path, method):
    features, labels = groups(sizes=(40, 40, 40))
    for name in "ab":
        torch.manual_seed(ord(name))
        plot_map(features, tmp_path / f"{name}.png", labels=labels, method=method, points=50)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_another_seed_draws_other_points(tmp_path):
    features, _ = groups()
    for seed in (0, 1):
        plot_map(features, tmp_path / f"{seed}.png", method="pca", points=10, seed=seed)
    assert not np.array_equal(pixels(tmp_path / "0.png"), pixels(tmp_path / "1.png"))


def test_no_more_points_are_drawn_than_asked_for(tmp_path):
    features, _ = groups()
    for points in (3, 60):
        plot_map(features, tmp_path / f"{points}.png", method="pca", points=points)
    few, all_of_them = (len(where(pixels(tmp_path / f"{points}.png"), INDIGO)) for points in (3, 60))
    assert 0 < few < all_of_them / 5


def test_points_of_a_plane_are_drawn_as_they_lie(tmp_path):
    """Principal components turn the plane and nothing else: distances in the picture are those of the unit vectors."""
    angles = torch.tensor([0.0, 0.3, 1.1])
    plane = torch.stack([angles.cos(), angles.sin()], dim=1)
    turned = plane @ torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0][:2]
    plot_map(turned, tmp_path / "m.png", labels=torch.arange(3), method="pca")
    picture = pixels(tmp_path / "m.png")
    places = np.stack([where(picture, colour).mean(0) for colour in (INDIGO, ROSE, GREEN)])
    found = [np.linalg.norm(places[i] - places[j]) for i, j in ((0, 1), (1, 2))]
    expected = [float((plane[i] - plane[j]).norm()) for i, j in ((0, 1), (1, 2))]
    assert found[0] / found[1] == pytest.approx(expected[0] / expected[1], rel=0.02)


def test_without_labels_all_points_are_of_one_colour(tmp_path):
    plot_map(groups()[0], tmp_path / "m.png", method="pca")
    picture = pixels(tmp_path / "m.png")
    assert len(where(picture, INDIGO)) > 100
    assert len(where(picture, ROSE)) == 0


@pytest.mark.parametrize(("names", "legend"), [(20, True), (21, False)])
def test_up_to_20_classes_have_a_legend(tmp_path, names, legend):
    features, labels = groups()
    plot_map(features, tmp_path / "m.png", labels=labels, classes=["name"] * names, method="pca")
    right = pixels(tmp_path / "m.png")[:, -50:-12]  # within a name, or between the points and the frame
    assert bool((right.max(-1) < 60).any()) == legend


def test_the_legend_names_the_classes_that_are_drawn(tmp_path):
    features, _ = groups()
    for file, classes in {"a": ["one", "two"], "b": ["other", "two"], "c": ["one", "too"]}.items():
        labels = torch.ones(60, dtype=torch.int64)
        plot_map(features, tmp_path / f"{file}.png", labels=labels, classes=classes, method="pca")
    a, b, c = (pixels(tmp_path / f"{file}.png") for file in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


# Domains


def corners() -> tuple[torch.Tensor, torch.Tensor]:
    """Two places, far apart, with three rows each; and which rows are at the first."""
    features = torch.eye(4)[[0, 0, 0, 1, 1, 1]]
    return features, torch.tensor([True, True, True, False, False, False])


def test_marks_of_the_first_domain_are_hollow_and_those_of_others_are_not(tmp_path):
    features, first = corners()
    labels = (~first).long()
    plot_map(features, tmp_path / "m.png", labels=labels, domains=2 * labels, method="pca")  # a circle and a square
    picture = pixels(tmp_path / "m.png")
    centres = [where(picture, colour) for colour in (INDIGO, ROSE)]
    filled = []
    for points in centres:
        middle = points.min(0) + np.ptp(points, axis=0) // 2
        filled.append(bool((np.abs(points - middle).max(1) <= 1).any()))
    assert filled == [False, True]


def test_colours_are_of_classes_and_shapes_of_domains(tmp_path):
    """One class at each place: its colour is the same whatever its domain, the mark another one."""
    features, first = corners()
    labels, found = (~first).long(), {}
    for domain in (1, 2, 3):
        domains = torch.where(first, domain, 1)
        plot_map(features, tmp_path / f"{domain}.png", labels=labels, domains=domains, method="pca")
        points = where(pixels(tmp_path / f"{domain}.png"), INDIGO)
        assert len(points) > 20
        found[domain] = frozenset(map(tuple, points - points.min(0)))
    assert len(set(found.values())) == 3


def test_a_map_of_domains_draws_points_where_a_map_of_classes_does(tmp_path):
    features, labels = groups()
    plot_map(features, tmp_path / "a.png", labels=labels, method="pca")
    plot_map(features, tmp_path / "b.png", labels=labels, domains=torch.ones(60).long(), method="pca")
    a, b = (pixels(tmp_path / f"{name}.png") for name in "ab")
    for colour in (INDIGO, ROSE):
        spread = [np.ptp(where(picture, colour), axis=0).max() for picture in (a, b)]
        assert spread[0] == pytest.approx(spread[1], rel=0.25)


def legend(path) -> np.ndarray:
    return pixels(path)[:, -110:]


def test_the_legend_names_the_domains_that_are_drawn(tmp_path):
    features, labels = groups()
    for file, names in {"a": ["xxxx", "yyyy", "zzzz"], "b": ["xxxx", "yyyy", "----"], "c": ["xxxx", "wwww"]}.items():
        plot_map(features, tmp_path / f"{file}.png", labels=labels, domains=labels, domain_names=names, method="pca")
    a, b, c = (legend(tmp_path / f"{file}.png") for file in "abc")
    assert np.array_equal(a, b)  # the third is of no row
    assert not np.array_equal(a, c)


def test_domains_are_called_by_their_numbers_by_default(tmp_path):
    features, labels = groups()
    for file, names in {"a": None, "b": ["0", "1"]}.items():
        plot_map(features, tmp_path / f"{file}.png", labels=labels, domains=labels, domain_names=names, method="pca")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


@pytest.mark.parametrize(("classes", "named"), [(10, True), (11, False)])
def test_up_to_10_classes_are_named_beside_domains(tmp_path, classes, named):
    features, labels = groups()
    for file, letter in (("a", "x"), ("b", "o")):
        names = [letter * 4] * classes
        plot_map(features, tmp_path / f"{file}.png", labels=labels, classes=names, domains=labels, method="pca")
    a, b = (pixels(tmp_path / f"{file}.png") for file in "ab")
    assert np.array_equal(a, b) != named


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    features, labels = groups()
    plot_map(features, tmp_path / "m.png", labels=labels, classes=["_hidden", "$a_b"], method="pca")
    legend = np.flip(pixels(tmp_path / "m.png"), axis=1)[:, :200]
    assert len(where(legend, INDIGO)) > 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 4])
def test_features_that_are_all_the_same_are_one_point(tmp_path, method, d):
    plot_map(torch.ones(10, d), tmp_path / "m.png", method=method)
    assert np.ptp(where(pixels(tmp_path / "m.png"), INDIGO), axis=0).max() < 20


def test_three_points_make_a_map(tmp_path):
    plot_map(torch.eye(3), tmp_path / "m.png")
    assert len(where(pixels(tmp_path / "m.png"), INDIGO))


def test_tsne_without_sklearn_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    message = r"^`method` 'tsne' needs scikit-learn: pip install 'cl-train\[data\]'; or 'pca'\.$"
    with pytest.raises(InputError, match=message):
        plot_map(groups()[0], tmp_path / "m.png")
    plot_map(groups()[0], tmp_path / "m.png", method="pca")


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (torch.ones(12), {}, r"^`features` must have shape \(n, d\) with n >= 3 and d >= 1, got \(12,\)\.$"),
        (torch.ones(2, 3), {}, r"with n >= 3 and d >= 1, got \(2, 3\)\.$"),
        (
            torch.tensor([[1.0], [torch.inf], [2.0]]),
            {},
            r"^`features` must be finite, 1 of 3 rows hold NaN or infinity",
        ),
        (torch.ones(4, 3), {"labels": torch.zeros(3).long()}, r"^`labels` must be integers of shape \(4,\), got "),
        (
            torch.ones(3, 3),
            {"labels": torch.arange(3), "classes": ["a", "b"]},
            r"^`labels` must be below the number of",
        ),
        (
            torch.ones(3, 3),
            {"classes": ["a"]},
            r"^`classes` are names for `labels`, which must be given with them, got ",
        ),
        (torch.ones(3, 3), {"domains": torch.arange(3)}, r"^`domains` must come with `labels`, got None\.$"),
        (
            torch.ones(3, 3),
            {"domain_names": ["a"]},
            r"^`domain_names` are names for `domains`, which must be given with them, got None\.$",
        ),
        (
            torch.ones(3, 3),
            {"labels": torch.arange(3), "domains": torch.arange(2)},
            r"^`domains` must be integers of shape \(3,\), got torch.int64 \(2,\)\.$",
        ),
        (
            torch.ones(3, 3),
            {"labels": torch.arange(3), "domains": torch.ones(3)},
            r"^`domains` must be integers of shape \(3,\), got torch.float32 \(3,\)\.$",
        ),
        (
            torch.ones(3, 3),
            {"labels": torch.arange(3), "domains": torch.tensor([0, -1, 1])},
            r"^`domains` must be at least 0, got -1\.$",
        ),
        (
            torch.ones(3, 3),
            {"labels": torch.arange(3), "domains": torch.tensor([0, 4, 1])},
            r"^`domains` must be at most 4, got 5\.$",
        ),
        (
            torch.ones(3, 3),
            {"labels": torch.arange(3), "domains": torch.arange(3), "domain_names": ["a", "b"]},
            r"^`domain_names` must be 3 names, got 2\.$",
        ),
        (torch.ones(3, 3), {"method": "umap"}, r"^`method` must be 'tsne' or 'pca', got 'umap'\.$"),
        (torch.ones(3, 3), {"points": 2}, r"^`points` must be at least 3, got 2\.$"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, features, settings, message):
    with pytest.raises(InputError, match=message):
        plot_map(features, tmp_path / "m.png", **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        plot_map(torch.eye(3), tmp_path / "none" / "m.png", method="pca")
