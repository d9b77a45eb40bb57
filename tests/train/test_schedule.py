"""Learning rates as functions of the step: against the numbers of the authors' code."""

import math
import re

import pytest
from cl_train import scaled_lr, warmup_cosine

# Runs of the authors: peak rate, warm-up steps, total steps
CIFAR_1000 = (2.0, 976, 97_657)
IMAGENET_100 = (4.8, 3_127, 31_279)
IMAGENET_800 = (4.8, 3_127, 250_228)
CIFAR_200 = (0.5, 1_953, 39_063)


@pytest.mark.parametrize(
    ("run", "step", "rate"),
    [
        (CIFAR_1000, 1, 0.00204918033),
        (CIFAR_1000, 975, 1.99795081967),
        (CIFAR_1000, 976, 2.0),
        (CIFAR_1000, 49_316, 1.00001624721),
        (IMAGENET_100, 1, 0.00153501759),
        (IMAGENET_100, 3_126, 4.79846498241),
        (IMAGENET_100, 3_127, 4.8),
        (IMAGENET_100, 17_203, 2.4),
        (IMAGENET_800, 1, 0.00153501759),
        (IMAGENET_800, 3_126, 4.79846498241),
        (IMAGENET_800, 3_127, 4.8),
        (IMAGENET_800, 126_677, 2.40001525656),
        (CIFAR_200, 1, 0.00025601639),
        (CIFAR_200, 1_952, 0.49974398361),
        (CIFAR_200, 1_953, 0.5),
        (CIFAR_200, 20_508, 0.25),
    ],
)
def test_warmup_cosine_gives_the_golden_rates(run, step, rate):
    peak, warmup_steps, total_steps = run
    factor = warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps)
    assert peak * factor == pytest.approx(rate, abs=6e-12)


@pytest.mark.parametrize(
    ("run", "rate", "tolerance"),
    [
        (CIFAR_1000, 5.2794e-10, 1e-14),
        (IMAGENET_100, 1.4944e-8, 1e-12),
        (IMAGENET_800, 1.94e-10, 1e-12),
        (CIFAR_200, 8.96e-10, 1e-12),
    ],
)
def test_warmup_cosine_gives_the_golden_last_rates(run, rate, tolerance):
    peak, warmup_steps, total_steps = run
    factor = warmup_cosine(total_steps - 1, warmup_steps=warmup_steps, total_steps=total_steps)
    assert peak * factor == pytest.approx(rate, abs=tolerance)


@pytest.mark.parametrize("run", [CIFAR_1000, IMAGENET_100])
def test_warmup_cosine_starts_at_0(run):
    assert warmup_cosine(0, warmup_steps=run[1], total_steps=run[2]) == 0


def test_warmup_cosine_without_warmup_starts_at_1():
    assert warmup_cosine(0, warmup_steps=0, total_steps=10) == 1


@pytest.mark.parametrize("step", [10, 11, 10_000])
def test_warmup_cosine_stays_at_0_after_the_end(step):
    assert warmup_cosine(step, warmup_steps=3, total_steps=10) == 0


@pytest.mark.parametrize(("step", "factor"), [(0, 0), (3, 0.75), (4, 0), (5, 0)])
def test_warmup_cosine_may_be_all_warmup(step, factor):
    assert warmup_cosine(step, warmup_steps=4, total_steps=4) == factor


def test_warmup_cosine_rises_then_falls_within_0_and_1():
    factors = [warmup_cosine(step, warmup_steps=7, total_steps=50) for step in range(60)]
    assert factors[:8] == sorted(factors[:8])
    assert factors[7:] == sorted(factors[7:], reverse=True)
    assert min(factors) == 0
    assert max(factors) == 1


def test_warmup_cosine_says_that_the_step_is_negative():
    with pytest.raises(ValueError, match=r"^`step` must be at least 0, got -1\.$"):
        warmup_cosine(-1, warmup_steps=0, total_steps=10)


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(-1, 10), (11, 10)])
def test_warmup_cosine_says_that_the_warmup_does_not_fit(warmup_steps, total_steps):
    message = f"`warmup_steps` must be in [0, total_steps], got {warmup_steps} with `total_steps` {total_steps}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        warmup_cosine(0, warmup_steps=warmup_steps, total_steps=total_steps)


@pytest.mark.parametrize(
    ("base", "batch_size", "rule", "rate"),
    [
        (0.3, 4096, "linear", 4.8),
        (0.075, 4096, "sqrt", 4.8),
        (1.0, 512, "linear", 2.0),
        (0.3, 256, "linear", 0.3),
        (0.075, 1, "sqrt", 0.075),
    ],
)
def test_scaled_lr_gives_the_papers_rates(base, batch_size, rule, rate):
    assert scaled_lr(base, batch_size, rule) == pytest.approx(rate, rel=1e-14)


def test_scaled_lr_is_linear_unless_told():
    assert scaled_lr(0.3, 64) == scaled_lr(0.3, 64, "linear")


@pytest.mark.parametrize("base", [0, -0.1, math.nan])
def test_scaled_lr_says_that_the_base_must_be_positive(base):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`base` must be positive, got {base}.')}$"):
        scaled_lr(base, 256)


def test_scaled_lr_says_that_the_batch_is_empty():
    with pytest.raises(ValueError, match=r"^`batch_size` must be at least 1, got 0\.$"):
        scaled_lr(0.3, 0)


def test_scaled_lr_says_which_rules_there_are():
    with pytest.raises(ValueError, match=r"^`rule` must be 'linear' or 'sqrt', got 'cubic'\.$"):
        scaled_lr(0.3, 256, "cubic")
