"""The sheet of nearest neighbours: it shows the right images, and whose class they are of."""

import numpy as np
import pytest
import torch
from _pixels import pixels, shows
from cl_train import ArrayDataset, ImageDataset, InputError, plot_neighbours

SAME, OTHER, PLAIN = (0, 158, 115), (213, 94, 0), (140, 140, 140)


class Plain(ImageDataset):
    """Images of one colour each, (40 + step * i, 0, 200); they are noted as they are read."""

    images = None

    def __init__(self, sizes, *, labels=None, classes=None, step=1):
        self.sizes, self.step, self.seen = sizes, step, []
        self.labels = None if labels is None else torch.tensor(labels)
        self.classes = classes or (None if labels is None else [str(c) for c in range(max(labels) + 1)])

    def __len__(self):
        return len(self.sizes)

    def read(self, index):
        self.seen.append(index)
        colour = torch.tensor([40 + self.step * index, 0, 200], dtype=torch.uint8)
        return colour.reshape(3, 1, 1).expand(3, *self.sizes[index]).contiguous()


def plain(n=12, *, size=(8, 8), **about) -> Plain:
    return Plain([size] * n, **about)


def directions(n=12) -> torch.Tensor:
    """Unit vectors at growing steps on an arc: the nearest to i are i - 1, i - 2, ... while these are there."""
    angles = torch.arange(n, dtype=torch.float32).pow(2) * (1.5 / n**2)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def shown(picture: np.ndarray) -> list[list[int]]:
    """Numbers of the images of each row of a sheet, from the left."""
    ours = (picture[..., 1] == 0) & (picture[..., 2] == 200)
    rows: list[list[int]] = []
    for y in range(len(picture)):
        line = picture[y][ours[y]][:, 0] - 40
        row = [int(line[x]) for x in range(len(line)) if x == 0 or line[x] != line[x - 1]]
        if row and (not rows or rows[-1] != row):
            rows.append(row)
    return rows


def nearest(features: torch.Tensor, query: int, count: int) -> list[int]:
    cosines = {
        other: float(features[query] @ features[other] / features[query].norm() / features[other].norm())
        for other in range(len(features))
        if other != query
    }
    return sorted(cosines, key=lambda other: -cosines[other])[:count]


def test_a_row_is_an_image_and_those_nearest_to_it(tmp_path):
    features = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plot_neighbours(features, plain(), tmp_path / "n.png", queries=4, neighbours=5)
    rows = shown(pixels(tmp_path / "n.png"))
    assert len({row[0] for row in rows}) == len(rows) == 4
    for query, *others in rows:
        assert others == nearest(features, query, 5)


def test_the_length_of_features_is_irrelevant(tmp_path):
    lengths = torch.arange(1, 13)[:, None] ** 3
    plot_neighbours(directions(), plain(), tmp_path / "a.png", queries=12)
    plot_neighbours(directions() * lengths, plain(), tmp_path / "b.png", queries=12)
    assert shown(pixels(tmp_path / "a.png")) == shown(pixels(tmp_path / "b.png"))


def test_an_image_is_not_its_own_neighbour(tmp_path):
    plot_neighbours(torch.ones(5, 3), plain(5), tmp_path / "n.png", queries=5, neighbours=4)
    rows = shown(pixels(tmp_path / "n.png"))
    assert all(sorted(row) == list(range(5)) for row in rows)


def test_more_than_there_is_shows_all(tmp_path):
    plot_neighbours(directions(3), plain(3), tmp_path / "n.png", queries=10, neighbours=10)
    assert sorted(sorted(row) for row in shown(pixels(tmp_path / "n.png"))) == [[0, 1, 2]] * 3


def test_only_images_that_are_shown_are_read(tmp_path):
    dataset = plain(100)
    plot_neighbours(directions(100), dataset, tmp_path / "n.png", queries=2, neighbours=3)
    assert set(dataset.seen) == {number for row in shown(pixels(tmp_path / "n.png")) for number in row}


def test_queries_are_of_as_many_classes_as_they_can_be(tmp_path):
    labels = [0] * 30 + [1] * 3 + [2, 3]  # at random, most of four would be of class 0
    plot_neighbours(directions(35), plain(35, labels=labels), tmp_path / "n.png", queries=4, neighbours=1)
    assert [labels[row[0]] for row in shown(pixels(tmp_path / "n.png"))] == [0, 1, 2, 3]


def test_a_class_has_its_second_query_when_all_have_had_one(tmp_path):
    labels = [0] * 30 + [1] * 3 + [2, 3]
    plot_neighbours(directions(35), plain(35, labels=labels), tmp_path / "n.png", queries=7, neighbours=1)
    assert [labels[row[0]] for row in shown(pixels(tmp_path / "n.png"))] == [0, 0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "there", "absent"),
    [
        ([0] * 12, [SAME], [OTHER]),
        (list(range(12)), [OTHER], [SAME]),
        ([0, 0, 0, 1] * 3, [SAME, OTHER], []),
        (None, [PLAIN], [SAME, OTHER]),
    ],
)
def test_frames_say_whether_a_neighbour_is_of_the_querys_class(tmp_path, labels, there, absent):
    plot_neighbours(directions(), plain(labels=labels), tmp_path / "n.png")
    picture = pixels(tmp_path / "n.png")
    assert all(shows(picture, colour) for colour in there)
    assert not any(shows(picture, colour) for colour in absent)


def test_frames_of_another_class_are_dashed_and_those_of_the_same_are_not(tmp_path):
    def runs(labels, colour) -> int:
        """Pieces that the frame above or below an image comes in, in the line of pixels with the most of it."""
        plot_neighbours(directions(2), plain(2, labels=labels), tmp_path / "n.png", queries=1)
        is_frame = np.abs(pixels(tmp_path / "n.png") - np.array(colour)).max(-1) <= 2
        line = max(is_frame, key=sum)
        return int((np.diff(line.astype(int)) == 1).sum())

    assert runs([0, 0], SAME) == 1
    assert runs([0, 1], OTHER) > 5


def test_images_of_unequal_sizes_are_shown_whole_in_cells_of_one_size(tmp_path):
    sizes = [(8, 8), (8, 16), (40, 10), (600, 300)]
    plot_neighbours(directions(4), Plain(sizes, step=20), tmp_path / "n.png", queries=1, neighbours=3)
    picture = pixels(tmp_path / "n.png")
    boxes = {}
    for i in range(4):
        ys, xs = np.nonzero((np.abs(picture - np.array([40 + 20 * i, 0, 200])) <= 2).all(-1))
        boxes[i] = (np.ptp(ys) + 1, np.ptp(xs) + 1)
    side = boxes[0][0]
    for i, (h, w) in enumerate(sizes):
        assert boxes[i] == pytest.approx((side * h / max(h, w), side * w / max(h, w)), abs=2.5), i


def test_grey_and_float_images_look_as_colour_and_uint8_ones(tmp_path):
    grey = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, images in (("a", grey), ("b", grey / 255), ("c", grey.expand(4, 3, 8, 8))):
        plot_neighbours(directions(4), ArrayDataset(images), tmp_path / f"{name}.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "c.png")).max() <= 1


def test_a_seed_draws_the_same_sheet_again_and_another_seed_other_queries(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        plot_neighbours(directions(), plain(labels=[0, 1] * 6), tmp_path / f"{name}.png", queries=3, seed=seed)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    queries = {name: {row[0] for row in shown(pixels(tmp_path / f"{name}.png"))} for name in "ac"}
    assert queries["a"] != queries["c"]


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    """No formulas, and room for the longest."""
    dataset = plain(2, labels=[0, 1], classes=["$a_b", "a name of many words " * 5])
    plot_neighbours(directions(2), dataset, tmp_path / "named.png")
    plot_neighbours(directions(2), plain(2, labels=[0, 1]), tmp_path / "numbered.png")
    named, numbered = (pixels(tmp_path / f"{name}.png") for name in ("named", "numbered"))
    assert named.shape[1] > numbered.shape[1] + 100
    assert named[:, :4].min() == 255


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (torch.ones(12), {}, r"^`features` must have shape \(n, d\) with n >= 2 and d >= 1, got \(12,\)\.$"),
        (torch.ones(1, 3), {}, r"with n >= 2 and d >= 1, got \(1, 3\)\.$"),
        (torch.ones(12, 0), {}, r"with n >= 2 and d >= 1, got \(12, 0\)\.$"),
        (torch.ones(11, 3), {}, r"^`features` must have one row for each of the 12 images, got 11\.$"),
        (torch.full((12, 3), torch.nan), {}, r"^`features` must be finite, 12 of 12 rows hold NaN or infinity\.$"),
        (torch.ones(12, 3), {"queries": 0}, r"^`queries` must be at least 1, got 0\.$"),
        (torch.ones(12, 3), {"neighbours": 0}, r"^`neighbours` must be at least 1, got 0\.$"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, features, settings, message):
    with pytest.raises(InputError, match=message):
        plot_neighbours(features, plain(), tmp_path / "n.png", **settings)
    assert not list(tmp_path.iterdir())


def test_images_of_two_channels_cannot_be_drawn(tmp_path):
    message = r"^images must have 1 or 3 channels to be drawn, got shape \(2, 4, 4\)\.$"
    with pytest.raises(InputError, match=message):
        plot_neighbours(torch.ones(3, 2), ArrayDataset(torch.zeros(3, 2, 4, 4)), tmp_path / "n.png")


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        plot_neighbours(torch.ones(3, 2), plain(3), tmp_path / "none" / "n.png")
