"""The law of the random boxes: torchvision's, at 60,000 draws."""

import functools
import math

import pytest
import torch
from cl_augment import RandomResizedCropFlip, sample_keys, uniform
from cl_augment._crop import random_boxes
from cl_augment._resample import Boxes
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import RandomResizedCrop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 60_000
ONE_IN_A_THOUSAND = 1.95  # of Kolmogorov and Smirnov, times 1 / sqrt(n); the seeds are fixed
SHAPES = pytest.mark.parametrize(("height", "width"), [(32, 32), (500, 375), (48, 64)])


def some_keys(n: int) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def sizes_of(n: int, height: int, width: int) -> Tensor:
    return torch.tensor([height, width]).expand(n, 2)


@functools.cache
def numbers(n: int) -> Tensor:
    return uniform(some_keys(n), 22)


@functools.cache
def our_boxes(n: int, height: int, width: int, ratio: tuple[float, float] = RATIO) -> Tensor:
    """(n, 4): top, left, height, width."""
    return torch.stack(random_boxes(numbers(n), sizes_of(n, height, width), scale=SCALE, ratio=ratio), dim=1)


@functools.cache
def torchvision_boxes(n: int, height: int, width: int) -> Tensor:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(n)])


def box_by_loops(u: list[float], height: int, width: int, ratio: tuple[float, float]) -> list[int]:
    """The law of `random_boxes`, try by try, from the same random numbers."""
    for area_u, aspect_u in zip(u[:10], u[10:20], strict=True):
        area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area_u)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspect_u)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [math.floor(u[20] * (height - h + 1)), math.floor(u[21] * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return [(height - h) // 2, (width - w) // 2, h, w]


@functools.cache
def sides_by_quadrature(height: int, width: int, steps: int = 400) -> tuple[Tensor, Tensor]:
    """Heights and widths of the accepted boxes, over a fine grid of equally likely areas and log aspects."""
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    area = (height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * grid))[:, None]
    aspect = (RATIO[0] * (RATIO[1] / RATIO[0]) ** grid)[None, :]
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w <= width) & (h <= height)
    # what `random_boxes` does when ten tries fail is left out, and is as rare as this
    assert (1 - fits.double().mean()) ** 10 < 1e-3
    return h[fits], w[fits]


def distance(x: Tensor, y: Tensor) -> float:
    """Kolmogorov and Smirnov's, between two samples."""
    places = torch.cat([x, y]).sort().values
    below = [torch.searchsorted(z.sort().values, places, right=True) / len(z) for z in (x, y)]
    return (below[0] - below[1]).abs().max().item()


@functools.cache
def our_draws() -> dict[str, Tensor]:
    """What the stage draws for images of 32 px."""
    return RandomResizedCropFlip(8).draw(some_keys(DRAWS), torch.Size([DRAWS, 3, 32, 32]))


@pytest.mark.parametrize(
    ("height", "width", "mean", "median", "below", "above"),
    [(32, 32, 0.489, 0.488, 0.146, 0.115), (500, 375, 0.433, 0.422, 0.175, 0.054)],
)
def test_random_boxes_cover_the_share_that_torchvisions_do(height, width, mean, median, below, above):
    # 60,000 draws of torchvision's, counted when the papers' and their codes' crops were compared
    boxes = our_boxes(DRAWS, height, width).double()
    share = boxes[:, 2] * boxes[:, 3] / (height * width)
    assert share.mean().item() == pytest.approx(mean, abs=0.01)
    assert share.median().item() == pytest.approx(median, abs=0.01)
    assert (share < 0.2).double().mean().item() == pytest.approx(below, abs=0.01)
    assert (share > 0.8).double().mean().item() == pytest.approx(above, abs=0.01)


@SHAPES
@pytest.mark.parametrize("quantity", [torch.mul, torch.div], ids=["area", "aspect"])
def test_sides_of_random_boxes_follow_the_law_integrated_over_a_grid(height, width, quantity):
    boxes = our_boxes(DRAWS, height, width).double()
    found = distance(quantity(boxes[:, 2], boxes[:, 3]), quantity(*sides_by_quadrature(height, width)))
    assert found < ONE_IN_A_THOUSAND / math.sqrt(DRAWS)


@SHAPES
@pytest.mark.parametrize("axis", [0, 1], ids=["top", "left"])
def test_offsets_of_random_boxes_are_uniform_over_the_places_where_the_box_fits(height, width, axis):
    boxes = our_boxes(DRAWS, height, width).double()
    places = (height, width)[axis] - boxes[:, 2 + axis] + 1
    # spreading each place evenly over its cell makes a uniform number of a uniform place
    within = torch.rand(DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    assert distance((boxes[:, axis] + within) / places, steps) < ONE_IN_A_THOUSAND / math.sqrt(DRAWS)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64)])
@pytest.mark.parametrize("quantity", ["area", "aspect", "top", "left"])
def test_random_boxes_follow_torchvisions_law(quantity, height, width):
    n = 3000

    def measure(boxes: Tensor) -> Tensor:
        top, left, h, w = boxes.double().unbind(1)
        return {"area": h * w, "aspect": (w / h).log(), "top": top, "left": left}[quantity]

    found = distance(measure(our_boxes(DRAWS, height, width)), measure(torchvision_boxes(n, height, width)))
    assert found < ONE_IN_A_THOUSAND * math.sqrt(1 / n + 1 / DRAWS)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 33), (20, 60), (9, 200), (200, 9), (2, 2)])
@pytest.mark.parametrize("ratio", [RATIO, (1.0, 1.0), (3.0, 4.0), (10.0, 10.0)], ids=str)
def test_random_boxes_are_their_slow_twin(height, width, ratio):
    u = numbers(300).double()  # in float32 a side half a pixel away may round to the other side
    actual = torch.stack(random_boxes(u, sizes_of(300, height, width), scale=SCALE, ratio=ratio), dim=1)
    assert actual.dtype == torch.int64
    assert actual.tolist() == [box_by_loops(row, height, width, ratio) for row in u.tolist()]


def test_random_boxes_in_float32_differ_from_float64_at_ties_only():
    single = our_boxes(DRAWS, 500, 375)
    double = random_boxes(numbers(DRAWS).double(), sizes_of(DRAWS, 500, 375), scale=SCALE, ratio=RATIO)
    assert (single != torch.stack(double, dim=1)).any(dim=1).double().mean() < 1e-3


def test_each_random_box_is_of_its_own_images_size():
    shapes = [(32, 32), (500, 375), (10, 300), (2, 2)]
    u = numbers(4 * 50)
    together = torch.stack(random_boxes(u, torch.tensor(shapes).repeat(50, 1), scale=SCALE, ratio=RATIO), dim=1)
    for i, shape in enumerate(shapes):
        alone = random_boxes(u[i::4], sizes_of(50, *shape), scale=SCALE, ratio=RATIO)
        assert_close(together[i::4], torch.stack(alone, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 33), (7, 5), (10, 300), (2, 2), (4096, 3001)])
def test_random_boxes_lie_within_the_image(height, width):
    extremes = torch.tensor([0, 0.5, 1 - 2.0**-24])  # the least and greatest numbers of `uniform` among them
    corners = torch.cartesian_prod(extremes, extremes, extremes, extremes)
    u = torch.cat([numbers(3000), corners.repeat_interleave(torch.tensor([10, 10, 1, 1]), dim=1)])
    top, left, h, w = random_boxes(u, sizes_of(len(u), height, width), scale=SCALE, ratio=RATIO)
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height
    assert (left + w).max() <= width


def test_random_boxes_reach_every_border():
    top, left, h, w = our_boxes(DRAWS, 32, 32).unbind(1)
    small = (h < 20) & (w < 20)
    assert top[small].min() == left[small].min() == 0
    assert (top + h)[small].max() == (left + w)[small].max() == 32


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 300, (0, 143, 10, 13)), (300, 10, (143, 0, 13, 10)), (5, 100, (0, 46, 5, 7))]
)
def test_random_boxes_of_an_extreme_image_are_its_centre(height, width, box):
    assert our_boxes(20, height, width).unique(dim=0).tolist() == [list(box)]
    assert torchvision_boxes(20, height, width).unique(dim=0).tolist() == [list(box)]


def test_random_crop_flips_half_of_the_images():
    assert our_draws()["flip"].double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("quantity", Boxes._fields)
def test_flips_are_independent_of_boxes(quantity):
    pair = torch.stack([our_draws()["flip"], our_draws()[quantity]]).double()
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / math.sqrt(DRAWS)
