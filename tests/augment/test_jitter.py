"""Colour jitter: torchvision's formulas, with amounts and an order of its own for each image."""

import colorsys
import itertools
import math
import re
from functools import cache

import pytest
import torch
from cl_augment import ColorJitter, sample_keys
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

OPERATIONS = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
NAMES = ["brightness", "contrast", "saturation", "hue"]
NEUTRAL = [1.0, 1.0, 1.0, 0.0]
ORDERS = list(itertools.permutations(range(4)))
EXTREMES = [(k, factor) for k in range(3) for factor in (0.0, 0.2, 1.0, 1.8, 2.6)]
EXTREMES += [(3, turn) for turn in (-0.5, -0.2, 0.0, 0.13, 0.2, 0.5)]
# 27 colours, 1 x 27 pixels: black, white, grey, pure ones, and every tie among the channels
CORNERS = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3))).T.reshape(1, 3, 1, 27)


def images(n: int, c: int = 3, h: int = 12, w: int = 10, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=dtype)


def some_keys(n: int) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def some_amounts(n: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Factors of brightness, contrast and saturation in [0.2, 1.8], turn of the hue in [-0.2, 0.2]: (n, 4)."""
    u = torch.rand(n, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return u * torch.tensor([1.6, 1.6, 1.6, 0.4]) + torch.tensor([0.2, 0.2, 0.2, -0.2])


def drawn(amounts: Tensor, orders: list[tuple[int, ...]], chosen: Tensor | None = None) -> dict[str, Tensor]:
    """What a stage would have drawn."""
    chosen = torch.ones(len(amounts), dtype=torch.bool) if chosen is None else chosen
    return dict(zip(NAMES, amounts.unbind(1), strict=True)) | {"order": torch.tensor(orders), "batch_prob": chosen}


def chain(image: Tensor, amounts: list[float], order: tuple[int, ...]) -> Tensor:
    """torchvision's operations, one after the other."""
    for place in order:
        image = OPERATIONS[place](image, amounts[place])
    return image


def turned_pixel_by_pixel(image: Tensor, turn: float) -> Tensor:
    """The hue turned by Python's own conversions to HSV and back, in float64: torchvision's are in float32 always."""
    result = torch.empty_like(image)
    for y, x in itertools.product(range(image.shape[1]), range(image.shape[2])):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
        result[:, y, x] = torch.tensor(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), dtype=image.dtype)
    return result


def by_loops(image: Tensor, amounts: list[float], order: tuple[int, ...]) -> Tensor:
    """Brightness, contrast and saturation of an image of any channels but three, in float64, number by number."""
    channels, height, width = image.shape
    x = image.double().tolist()
    places = list(itertools.product(range(height), range(width)))
    for operation in order:
        factor = amounts[operation]
        grey = {(i, j): sum(x[k][i][j] for k in range(channels)) / channels for i, j in places}
        mean_grey = sum(grey.values()) / len(places)
        for k, (i, j) in itertools.product(range(channels), places):
            target = {0: 0.0, 1: mean_grey, 2: grey[i, j], 3: x[k][i][j]}[operation]
            x[k][i][j] = min(max(factor * x[k][i][j] + (1 - factor) * target, 0.0), 1.0)
    return torch.tensor(x, dtype=torch.float64)


def difference_of(order: tuple[int, ...]) -> float:
    batch, amounts = images(4), some_amounts(4)
    actual = ColorJitter().replay(batch, drawn(amounts, [order] * 4))
    expected = torch.stack([chain(*row, order) for row in zip(batch, amounts.tolist(), strict=True)])
    return (actual - expected).abs().max().item()


def difference_alone(operation: int, amount: float) -> float:
    batch = images(4)
    amounts = torch.tensor([NEUTRAL] * 4)
    amounts[:, operation] = amount
    actual = ColorJitter().replay(batch, drawn(amounts, [(0, 1, 2, 3)] * 4))
    return (actual - OPERATIONS[operation](batch, amount)).abs().max().item()


def largest_differences() -> dict[str, float]:
    """To torchvision in float32: each operation alone, at any of its amounts, and chains in all orders."""
    alone = {name: max(difference_alone(k, a) for j, a in EXTREMES if j == k) for k, name in enumerate(NAMES)}
    return alone | {"all four, any order": max(map(difference_of, ORDERS))}


# Formulas


@pytest.mark.parametrize(("operation", "amount"), EXTREMES)
def test_an_operation_alone_is_torchvisions(operation, amount):
    assert difference_alone(operation, amount) <= 2e-6


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(NAMES[k] for k in order))
def test_a_chain_is_torchvisions_in_any_order(order):
    assert difference_of(order) <= 2e-6


def test_the_largest_differences_to_torchvision_are_of_rounding():
    assert max(largest_differences().values()) <= 2e-6


def test_every_image_of_a_batch_has_its_own_amounts_and_order():
    batch, amounts = images(24), some_amounts(24)
    actual = ColorJitter().replay(batch, drawn(amounts, ORDERS))
    for i, order in enumerate(ORDERS):
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), order), rtol=0, atol=2e-6)


def test_in_float64_brightness_contrast_and_saturation_are_torchvisions_to_12_digits():
    batch, amounts = images(24, dtype=torch.float64), some_amounts(24, dtype=torch.float64)
    amounts[:, 3] = 0
    actual = ColorJitter(hue=0).replay(batch, drawn(amounts, ORDERS))
    for i, order in enumerate(ORDERS):
        without_hue = tuple(k for k in order if k != 3)
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), without_hue), rtol=0, atol=1e-12)


def test_in_float64_a_chain_is_torchvisions_with_the_hue_of_pythons_colorsys_to_12_digits():
    batch, amounts = images(24, h=5, w=4, dtype=torch.float64), some_amounts(24, dtype=torch.float64)
    actual = ColorJitter().replay(batch, drawn(amounts, ORDERS))
    operations = [*OPERATIONS[:3], turned_pixel_by_pixel]
    for i, order in enumerate(ORDERS):
        expected = batch[i]
        for place in order:
            expected = operations[place](expected, amounts[i, place].item())
        assert_close(actual[i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("turn", [-0.5, -1 / 3, -0.1, 0.0, 1 / 6, 0.25, 0.5])
def test_the_hue_of_pure_colours_and_of_ties_is_that_of_pythons_colorsys(turn):
    corners = CORNERS.double()
    actual = ColorJitter().replay(corners, drawn(torch.tensor([[1, 1, 1, turn]], dtype=torch.float64), [(0, 1, 2, 3)]))
    assert_close(actual[0], turned_pixel_by_pixel(corners[0], turn), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chroma", [1e-2, 1e-4, 1e-6])
def test_the_hue_of_nearly_grey_pixels_is_that_of_pythons_colorsys(chroma):
    batch = 0.5 + chroma * images(1, dtype=torch.float64)
    amounts = torch.tensor([[1, 1, 1, 0.2]], dtype=torch.float64)
    expected = turned_pixel_by_pixel(batch[0], 0.2)
    assert_close(ColorJitter().replay(batch, drawn(amounts, [(0, 1, 2, 3)]))[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("operation", "amount"), EXTREMES)
def test_an_operation_on_black_white_grey_and_pure_colours_is_torchvisions(operation, amount):
    amounts = torch.tensor([NEUTRAL])
    amounts[:, operation] = amount
    actual = ColorJitter().replay(CORNERS, drawn(amounts, [(0, 1, 2, 3)]))
    assert_close(actual, OPERATIONS[operation](CORNERS, amount), rtol=0, atol=1e-6)  # fails for what is not finite


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.1, 0.5])
def test_turning_the_hue_leaves_pixels_of_equal_channels_bit_by_bit(turn):
    batch = torch.cat([torch.linspace(0, 1, 119), torch.tensor([1e-42])])  # the last one is no normal number
    batch = batch.reshape(1, 1, 10, 12).expand(1, 3, 10, 12)
    actual = ColorJitter().replay(batch, drawn(torch.tensor([[1, 1, 1, turn]]), [(3, 0, 1, 2)]))
    assert_close(actual, batch, rtol=0, atol=0)


def test_pixels_of_equal_channels_keep_them_equal():
    batch = images(24, 1).expand(24, 3, 12, 10)
    actual = ColorJitter().replay(batch, drawn(some_amounts(24), ORDERS))
    assert_close(actual, actual[:, :1].expand_as(actual), rtol=0, atol=0)


def test_nothing_is_left_of_an_image_at_brightness_0():
    amounts = torch.tensor([[0.0, 1, 1, 0]])
    actual = ColorJitter().replay(images(1), drawn(amounts, [(0, 1, 2, 3)]))
    assert_close(actual, torch.zeros(1, 3, 12, 10), rtol=0, atol=0)


def test_neutral_amounts_change_no_image_by_more_than_rounding():
    batch = images(24)
    actual = ColorJitter().replay(batch, drawn(torch.tensor([NEUTRAL] * 24), ORDERS))
    assert_close(actual, batch, rtol=0, atol=1e-6)


def test_jitter_of_the_largest_strength_stays_within_0_and_1():
    batch = torch.cat([images(24), (images(24) > 0.5).float(), CORNERS.new_zeros(1, 3, 12, 10)])
    out = ColorJitter(2.5, p=1.0)(batch, some_keys(49))
    assert out.min() >= 0
    assert out.max() <= 1


# Other than three channels


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_grey_is_the_mean_of_the_channels_where_they_are_not_three(channels):
    batch, amounts = images(24, channels, 4, 3, dtype=torch.float64), some_amounts(24, dtype=torch.float64)
    actual = ColorJitter(hue=0).replay(batch, drawn(amounts, ORDERS))
    for i, order in enumerate(ORDERS):
        assert_close(actual[i], by_loops(batch[i], amounts[i].tolist(), order), rtol=0, atol=1e-12)


def test_jitter_of_grey_images_is_torchvisions():
    batch, amounts = images(24, 1), some_amounts(24)
    actual = ColorJitter(hue=0).replay(batch, drawn(amounts, ORDERS))
    for i, order in enumerate(ORDERS):
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), order), rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_color_jitter_says_that_other_than_three_channels_have_no_hue(channels):
    message = f"`images` of {channels} channels have no hue to turn: pass hue=0."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ColorJitter()(images(2, channels), some_keys(2))


@pytest.mark.parametrize("stage", [ColorJitter(hue=0), ColorJitter(0)], ids=["hue 0", "strength 0"])
def test_color_jitter_takes_any_number_of_channels_if_its_hue_has_no_strength(stage):
    assert stage(images(4, 4), some_keys(4)).shape == (4, 4, 12, 10)


# Laws


@cache
def many_draws(strength: float = 1.0) -> dict[str, Tensor]:
    return ColorJitter(strength).draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))


def distance_to_uniform(values: Tensor, low: float, high: float) -> float:
    """sqrt(n) times the largest difference of the distribution functions: Kolmogorov and Smirnov's statistic."""
    n = len(values)
    expected = (values.double().sort().values - low) / (high - low)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((steps[1:] - expected).max().item(), (expected - steps[:-1]).max().item())


@pytest.mark.parametrize(("strength", "low", "high"), [(1.0, 0.2, 1.8), (0.5, 0.6, 1.4), (2.0, 0.0, 2.6)])
@pytest.mark.parametrize("name", NAMES[:3])
def test_factors_are_uniform_around_1_and_not_below_0(name, strength, low, high):
    assert distance_to_uniform(many_draws(strength)[name], low, high) < 1.95  # passed by chance at 1 in 1000


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0])
def test_the_hue_turns_uniformly_both_ways(strength):
    assert distance_to_uniform(many_draws(strength)["hue"], -0.2 * strength, 0.2 * strength) < 1.95


def test_each_amount_has_a_strength_of_its_own():
    stage = ColorJitter(0.5, brightness=0.2, contrast=0.4, saturation=0.8, hue=0.1)
    draws = stage.draw(some_keys(60_000), torch.Size([60_000, 3, 32, 32]))
    for name, low, high in zip(NAMES, (0.9, 0.8, 0.6, -0.05), (1.1, 1.2, 1.4, 0.05), strict=True):
        assert distance_to_uniform(draws[name], low, high) < 1.95


def test_strength_0_draws_neutral_amounts():
    draws = ColorJitter(0).draw(some_keys(8), torch.Size([8, 3, 32, 32]))
    assert_close(torch.stack([draws[name] for name in NAMES], dim=1), torch.tensor([NEUTRAL] * 8), rtol=0, atol=0)


def test_all_orders_are_equally_likely():
    draws = many_draws()
    number = (draws["order"] * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = number.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert (draws["order"].sort(dim=1).values == torch.arange(4)).all()
    assert ((counts - 2500) ** 2 / 2500).sum() < 49.7  # chi squared of 23 degrees: 1 in 1000


def test_four_in_five_images_are_jittered():
    draws = many_draws()
    assert draws["batch_prob"].dtype == torch.bool
    assert draws["batch_prob"].double().mean().item() == pytest.approx(0.8, abs=3.5 * math.sqrt(0.8 * 0.2 / 60_000))


def test_gate_amounts_and_places_in_the_order_are_uncorrelated():
    draws = many_draws()
    places = draws["order"].argsort(dim=1)  # of each operation; among themselves they depend on each other
    table = torch.stack([draws["batch_prob"], *(draws[name] for name in NAMES), *places.unbind(1)]).double()
    correlations = torch.corrcoef(table)
    correlations.fill_diagonal_(0)
    assert correlations[:5].abs().max() < 4 / math.sqrt(60_000)


# Errors


@pytest.mark.parametrize("value", [-0.1, math.nan])
@pytest.mark.parametrize("name", ["strength", *NAMES])
def test_color_jitter_says_which_strength_is_negative_or_no_number(name, value):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{name}` must be at least 0 and finite, got {value}.')}$"):
        ColorJitter(**{name: value})


@pytest.mark.parametrize(("strength", "hue"), [(2.6, 0.2), (1.0, 0.51)])
def test_color_jitter_says_that_the_hue_would_turn_past_half_a_circle(strength, hue):
    message = f"`strength` times `hue` must be at most 0.5, half a circle, got {strength} * {hue} = {strength * hue}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ColorJitter(strength, hue=hue)


def test_color_jitter_takes_a_hue_of_half_a_circle():
    assert ColorJitter(2.5, hue=0.2).hue == 0.2


def test_color_jitter_prints_its_arguments():
    assert repr(ColorJitter(0.5)) == (
        "ColorJitter(strength=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8)"
    )
