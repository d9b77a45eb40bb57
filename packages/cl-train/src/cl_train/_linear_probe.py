"""A linear classifier on features that are computed once."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from cl_train._schedule import warmup_cosine
from cl_train._scores import Scores, check_features, scores


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    epochs: int = 90,
    batch_size: int = 256,
    base_lr: float = 0.1,
    seed: int = 0,
) -> Scores:
    """Accuracy of a linear layer trained on bare features by the paper's optimiser.

    Nesterov momentum 0.9, learning rate base_lr * batch_size / 256 falling along a cosine to 0, no decay, zero
    initialisation (arXiv:2002.05709, App. B.6). Unlike `linear_eval` it sees one fixed view of each image, so it needs
    seconds; the features are divided by one number, their root mean square, so that the learning rate fits any encoder.

    Args:
        train_x: Features, (n, d).
        train_y: Classes from 0, integers, (n,).
        test_x: Features, (m, d).
        test_y: Classes, (m,).
        epochs: Passes over the training features, >= 1.
        batch_size: Rows per step, >= 1; at most n are taken.
        base_lr: Learning rate at a batch of 256, > 0.
        seed: Seed of the order of the rows.

    Returns:
        Accuracies on the test features.

    Raises:
        ValueError: Features and labels do not fit, or an argument is out of its range.
    """
    classes = check_features(train_x, train_y, test_x, test_y)
    for name, value in {"epochs": epochs, "batch_size": batch_size, "base_lr": base_lr}.items():
        if value <= 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
    scale = train_x.float().square().mean().sqrt().clamp(min=1e-12)
    train_x, test_x, train_y = train_x.float() / scale, test_x.float() / scale, train_y.long()
    batch_size = min(batch_size, len(train_x))
    layer = torch.nn.Linear(train_x.shape[1], classes, device=train_x.device)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    lr = base_lr * batch_size / 256
    optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(train_x) / batch_size)
    with torch.enable_grad():
        for epoch in range(epochs):
            order = torch.randperm(len(train_x), generator=generator).to(train_x.device)
            for step, rows in enumerate(order.split(batch_size), start=epoch * steps):
                optimizer.param_groups[0]["lr"] = lr * warmup_cosine(step, warmup_steps=0, total_steps=epochs * steps)
                optimizer.zero_grad()
                functional.cross_entropy(layer(train_x[rows]), train_y[rows]).backward()
                optimizer.step()
    return scores(layer(test_x).detach(), test_y)
