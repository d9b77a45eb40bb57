"""Colour distortion: torchvision's formulas, an order of its own for each image."""

import itertools
import math
import re

import pytest
import torch
from cl_augment import ColorJitter, RandomGrayscale, sample_keys, uniform
from cl_augment._colour import jitter
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

OPERATIONS = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
NAMES = ["brightness", "contrast", "saturation", "hue"]
ORDERS = list(itertools.permutations(range(4)))


def images(n: int, c: int = 3, size: int = 8, *, seed: int = 0) -> Tensor:
    return torch.rand(n, c, size, size, generator=torch.Generator().manual_seed(seed))


def some_keys(n: int, *, seed: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=seed, epoch=0)


def chain(image: Tensor, amounts: list[float], order: tuple[int, ...]) -> Tensor:
    """torchvision's operations, one after the other."""
    for place in order:
        image = OPERATIONS[place](image, amounts[place])
    return image


def jitter_all(batch: Tensor, amounts: Tensor, orders: list[tuple[int, ...]]) -> Tensor:
    """`amounts` (n, 4): factors of brightness, contrast and saturation, turn of the hue."""
    return jitter(batch, factors=amounts[:, :3], shift=amounts[:, 3], order=torch.tensor(orders))


@pytest.fixture
def drawn(monkeypatch) -> list[dict[str, Tensor]]:
    """What ColorJitter asks of `jitter`, call by call."""
    calls = []

    def record(batch: Tensor, **arguments: Tensor) -> Tensor:
        calls.append(arguments)
        return batch

    monkeypatch.setattr("cl_augment._colour.jitter", record)
    return calls


# Formulas


@pytest.mark.parametrize(
    ("operation", "amount"),
    [(k, amount) for k in range(3) for amount in (0.0, 0.2, 1.0, 1.8)] + [(3, t) for t in (-0.5, -0.2, 0.0, 0.13, 0.5)],
)
def test_an_operation_alone_is_torchvisions(operation, amount):
    batch = images(4)
    amounts = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(4, 1)
    amounts[:, operation] = amount
    actual = jitter_all(batch, amounts, [(0, 1, 2, 3)] * 4)
    assert_close(actual, OPERATIONS[operation](batch, amount), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(NAMES[k] for k in order))
def test_a_chain_is_torchvisions_in_any_order(order):
    batch = images(3)
    amounts = torch.tensor([[1.6, 0.4, 1.7, 0.15], [0.3, 1.8, 0.2, -0.2], [1.2, 1.3, 1.8, 0.05]])
    actual = jitter_all(batch, amounts, [order] * 3)
    for i in range(3):
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), order), rtol=0, atol=1e-5)


def test_every_image_of_a_batch_has_its_own_amounts_and_order():
    batch = images(24)
    amounts = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.8, 1.8, 1.8, 0.2])
    actual = jitter_all(batch, amounts, ORDERS)
    for i, order in enumerate(ORDERS):
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), order), rtol=0, atol=1e-5)


def test_jitter_of_grey_images_is_torchvisions():
    batch = images(24, 1)
    amounts = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.8, 1.8, 1.8, 0.2])
    actual = jitter_all(batch, amounts, ORDERS)
    for i, order in enumerate(ORDERS):
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), order), rtol=0, atol=1e-5)


def test_jitter_of_black_white_and_grey_is_finite():
    batch = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.5, 1.0)])
    out = ColorJitter(p=1.0)(batch, some_keys(3))
    assert out.isfinite().all()


def test_jitter_stays_within_0_and_1():
    out = ColorJitter(p=1.0)(images(16), some_keys(16))
    assert out.min() >= 0
    assert out.max() <= 1


def test_color_jitter_does_what_it_draws():
    batch, keys = images(16), some_keys(16)
    u = uniform(keys, 9)
    amounts = torch.cat([0.6 + 0.8 * u[:, :3], 0.1 * (2 * u[:, 3:4] - 1)], dim=1)
    actual = ColorJitter(0.5, p=1.0)(batch, keys)
    for i in range(16):
        order = tuple(u[i, 4:8].argsort().tolist())
        assert_close(actual[i], chain(batch[i], amounts[i].tolist(), order), rtol=0, atol=1e-5)


# Laws


def test_color_jitter_draws_all_orders_equally_often(drawn):
    n = 24_000
    ColorJitter()(torch.zeros(n, 1, 1, 1), some_keys(n))
    number = (drawn[0]["order"] * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = number.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 23 + 4 * math.sqrt(2 * 23)  # chi squared


@pytest.mark.parametrize(
    ("strength", "low", "high", "turn"),
    [(1.0, 0.2, 1.8, 0.2), (0.5, 0.6, 1.4, 0.1), (2.0, 0.0, 2.6, 0.4), (0, 1, 1, 0)],
)
def test_color_jitter_draws_within_the_papers_ranges_and_fills_them(drawn, strength, low, high, turn):
    n = 4000
    ColorJitter(strength)(torch.zeros(n, 1, 1, 1), some_keys(n))
    factors, shift = drawn[0]["factors"], drawn[0]["shift"]
    assert factors.amin(0).tolist() == pytest.approx([low] * 3, abs=2e-3 * (high - low) + 1e-6)
    assert factors.amax(0).tolist() == pytest.approx([high] * 3, abs=2e-3 * (high - low) + 1e-6)
    assert factors.mean(0).tolist() == pytest.approx([(low + high) / 2] * 3, abs=0.02 * (high - low) + 1e-6)
    assert (shift.min().item(), shift.max().item()) == pytest.approx((-turn, turn), abs=4e-3 * turn + 1e-6)


def test_color_jitter_draws_its_amounts_independently(drawn):
    n = 4000
    ColorJitter()(torch.zeros(n, 1, 1, 1), some_keys(n))
    drawn_together = torch.cat(
        [drawn[0]["factors"], drawn[0]["shift"][:, None], drawn[0]["order"].float()[:, :1]], dim=1
    )
    correlations = torch.corrcoef(drawn_together.T) - torch.eye(5)
    assert correlations.abs().max() < 4 / math.sqrt(n)


def test_color_jitter_decides_whether_to_jitter_apart_from_how(monkeypatch):
    n, calls = 4000, []

    def mark(batch: Tensor, **arguments: Tensor) -> Tensor:
        calls.append(arguments)
        return batch + 1

    monkeypatch.setattr("cl_augment._colour.jitter", mark)
    jittered = ColorJitter()(torch.zeros(n, 1, 1, 1), some_keys(n)).reshape(n, 1)
    assert 0 < jittered.mean() < 1
    places = calls[0]["order"].argsort(dim=1).float()  # of each operation
    table = torch.cat([jittered, calls[0]["factors"], calls[0]["shift"][:, None], places], dim=1)
    assert torch.corrcoef(table.T)[0, 1:].abs().max() < 4 / math.sqrt(n)


@pytest.mark.parametrize("stage", [ColorJitter, RandomGrayscale])
def test_a_colour_stage_of_probability_0_changes_nothing(stage):
    batch = images(16)
    assert_close(stage(p=0.0)(batch, some_keys(16)), batch, rtol=0, atol=0)


@pytest.mark.parametrize("stage", [ColorJitter, RandomGrayscale])
def test_a_colour_stage_of_probability_1_changes_every_image(stage):
    batch = images(16)
    assert ((stage(p=1.0)(batch, some_keys(16)) - batch).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize(("stage", "p"), [(ColorJitter, 0.8), (RandomGrayscale, 0.2)])
def test_a_colour_stage_changes_the_papers_share_of_the_images(stage, p):
    n = 4000
    batch = torch.tensor([0.8, 0.5, 0.1]).reshape(1, 3, 1, 1).expand(n, 3, 1, 1)
    changed = (stage()(batch, some_keys(n)) != batch).flatten(1).any(dim=1).float().mean().item()
    assert changed == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


# Grey images


def test_random_grayscale_is_torchvisions():
    batch = images(4)
    expected = tv.rgb_to_grayscale(batch, num_output_channels=3)
    assert_close(RandomGrayscale(p=1.0)(batch, some_keys(4)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("channel", "weight"), [(0, 0.2989), (1, 0.587), (2, 0.114)], ids=["red", "green", "blue"])
def test_random_grayscale_weighs_the_channels_as_torchvision_does(channel, weight):
    batch = torch.zeros(1, 3, 2, 2)
    batch[:, channel] = 1
    assert_close(RandomGrayscale(p=1.0)(batch, some_keys(1)), torch.full((1, 3, 2, 2), weight), rtol=0, atol=1e-7)


def test_random_grayscale_leaves_grey_images_alone():
    batch = images(16, 1)
    assert_close(RandomGrayscale(p=1.0)(batch, some_keys(16)), batch, rtol=0, atol=0)


# Errors


@pytest.mark.parametrize("strength", [-0.1, 2.6, math.nan])
def test_color_jitter_says_that_the_strength_is_out_of_range(strength):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`strength` must be in [0, 2.5], got {strength}.')}$"):
        ColorJitter(strength)


@pytest.mark.parametrize("stage", [ColorJitter, RandomGrayscale])
@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_colour_stage_says_that_p_is_no_probability(stage, p):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`p` is a probability in [0, 1], got {p}.')}$"):
        stage(p=p)


@pytest.mark.parametrize("stage", [ColorJitter, RandomGrayscale])
@pytest.mark.parametrize("channels", [2, 4])
def test_a_colour_stage_says_how_many_channels_images_may_have(stage, channels):
    message = f"`images` of {stage.__name__} must have 1 (grey) or 3 (RGB) channels, got {channels}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stage()(images(2, channels), some_keys(2))
