"""A linear classifier on features that are computed once, by many learning rates and decays at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from cl_train._errors import InputError
from cl_train._few_labels import held_out as split
from cl_train._schedule import warmup_cosine
from cl_train._scores import Scores, check_features, scores

_MOMENTUM = 0.9
Setting = tuple[float, float]  # learning rate at a batch of 256, decay


@dataclass(frozen=True)
class ProbeScores(Scores):
    """Scores on the test features, and how the learning rate was found.

    Attributes:
        rate: The learning rate at a batch of 256 that was chosen.
        decay: The weight decay that was chosen.
        tried: Top-1 on the held-out rows by (rate, decay), in [0, 1]; empty if there was nothing to choose.
    """

    rate: float
    decay: float
    tried: dict[Setting, float]


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    rates: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    decays: Sequence[float] = (0.0, 1e-5, 1e-3),
    held_out: float = 0.1,
    epochs: int = 90,
    batch_size: int = 256,
    seed: int = 0,
) -> ProbeScores:
    """Accuracy of a linear layer trained on bare features by SGD, with the learning rate and decay that suit them.

    A layer for every rate and decay is trained on the same batches, all in one product, without the held-out rows. The
    one with the highest top-1 on those (of equals, the smaller rate, then the stronger decay) is trained again on all
    rows and judged on the test features, which nothing is chosen by. A layer whose weights are no longer finite
    counts as 0.

    Nesterov momentum 0.9, learning rate falling along a cosine to 0, zero initialisation, as in the paper
    (arXiv:2002.05709, App. B.6), which has one rate, 0.1, and no decay. Decay acts on the bias too, as torch's SGD
    does. Unlike `linear_eval` the probe sees one fixed view of each image; the features are divided by one number,
    their root mean square, so that the same rates fit any encoder. 90 epochs are the paper's: large rates are there
    long before, the smallest are not, which is a regularisation of its own.

    Args:
        train_x: Features, (n, d).
        train_y: Classes from 0, integers, (n,).
        test_x: Features, (m, d).
        test_y: Classes, (m,).
        rates: Learning rates at a batch of 256, > 0; multiplied by batch_size / 256.
        decays: Weight decays (L2), >= 0.
        held_out: Share of each class's rows to choose by, in (0, 1). Not used with one rate and one decay.
        epochs: Passes over the training features, >= 1.
        batch_size: Rows per step, >= 1; at most n are taken.
        seed: Seed of the held-out rows and of the order of the rows.

    Returns:
        Accuracies on the test features, and what was chosen.

    Raises:
        InputError: Features and labels do not fit, an argument is out of its range, or the chosen layer diverged.
    """
    classes = check_features(train_x, train_y, test_x, test_y)
    _check(rates, decays, epochs=epochs, batch_size=batch_size)
    scale = train_x.float().square().mean().sqrt().clamp(min=1e-12)
    train_x, test_x, train_y = train_x.float() / scale, test_x.float() / scale, train_y.long()
    settings = list(product(sorted(rates), sorted(decays, reverse=True)))
    tried: dict[Setting, float] = {}
    if len(settings) > 1:
        kept, held = split(train_y, held_out, seed=seed)
        layers = _train(train_x[kept], train_y[kept], classes, settings, epochs, batch_size, seed)
        tried = dict(zip(settings, _top1(*layers, train_x[held], train_y[held]), strict=True))
    rate, decay = max(tried or settings, key=lambda setting: tried.get(setting, 0.0))  # the first of equals
    weight, bias = _train(train_x, train_y, classes, [(rate, decay)], epochs, batch_size, seed)
    logits = torch.addmm(bias[0], test_x, weight[:, 0])
    if not bool(torch.isfinite(logits).all()):
        raise InputError(f"`rates` and `decays` must be small enough, the layer with {rate} and {decay} diverged.")
    return ProbeScores(**vars(scores(logits, test_y)), rate=rate, decay=decay, tried=tried)


def _train(
    x: Tensor, y: Tensor, classes: int, settings: list[Setting], epochs: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """A layer for each setting: weights (d, settings, classes), biases (settings, classes)."""
    batch_size = min(batch_size, len(x))
    steps = math.ceil(len(x) / batch_size)
    rate, decay = x.new_tensor(settings).repeat_interleave(classes, dim=0).T * x.new_tensor([[batch_size / 256], [1.0]])
    weight, bias = x.new_zeros(x.shape[1], len(rate)), x.new_zeros(len(rate))
    moved = torch.zeros_like(weight), torch.zeros_like(bias)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for step, rows in enumerate(order.split(batch_size), start=epoch * steps):
            lr = rate * warmup_cosine(step, warmup_steps=0, total_steps=epochs * steps)
            gradients = _gradients(x[rows], y[rows], weight, bias, classes)
            for p, g, v in zip((weight, bias), gradients, moved, strict=True):
                g.addcmul_(p, decay)
                v.mul_(_MOMENTUM).add_(g)
                p.addcmul_(g.add_(v, alpha=_MOMENTUM), lr, value=-1)  # Nesterov, as torch.optim.SGD does it
    return weight.unflatten(1, (-1, classes)), bias.unflatten(0, (-1, classes))


def _gradients(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Of the mean cross entropy of each setting: by hand, as autograd would keep several tensors of that size."""
    rest = torch.addmm(bias, x, weight).unflatten(1, (-1, classes)).softmax(2)
    label = y[:, None, None].expand(-1, rest.shape[1], 1)
    rest.scatter_add_(2, label, rest.new_full((1, 1, 1), -1.0).expand_as(label))
    flat = rest.flatten(1).div_(len(x))
    return x.T @ flat, flat.sum(0)


def _top1(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> list[float]:
    """Of each setting's layer."""
    found = []
    for w, b in zip(weight.unbind(1), bias, strict=True):
        logits = torch.addmm(b, x, w)
        hit = (logits.argmax(1) == y).double().mean()
        found.append(float(hit) if bool(torch.isfinite(logits).all()) else 0.0)
    return found


def _check(rates: Sequence[float], decays: Sequence[float], *, epochs: int, batch_size: int) -> None:
    for name, value in {"epochs": epochs, "batch_size": batch_size}.items():
        if value <= 0:
            raise InputError(f"`{name}` must be positive, got {value}.")
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"`rates` must be one or more positive numbers, got {rates}.")
    if not decays or not all(0 <= decay < math.inf for decay in decays):
        raise InputError(f"`decays` must be one or more numbers from 0, got {decays}.")
