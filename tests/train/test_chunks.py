"""A large batch in chunks: the gradient of the whole, whatever the chunks, and what BatchNorm sees."""

import copy
from dataclasses import replace

import pytest
import torch
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import Method, SimCLR, make_accelerator
from cl_train._loader import Batch
from cl_train._step import Gradient
from torch import Tensor, nn
from torch.testing import assert_close

IMAGES = 12


class Net(nn.Module):
    """Two layers of it look at other images when `norm` is BatchNorm."""

    feature_dim = 10

    def __init__(self, norm=nn.BatchNorm2d, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            norm(6),
            nn.ReLU(),
            nn.Conv2d(6, 10, 3),
            norm(10),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def simclr(norm=nn.BatchNorm2d, *, dropout: float = 0.0, num_classes: int | None = 3) -> SimCLR:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(10, 8), norm(8) if norm is not group_norm else nn.Identity(), nn.Linear(8, 4))
    if norm is nn.BatchNorm2d:
        head[1] = nn.BatchNorm1d(8)
    encoder = Net(norm, dropout=dropout)
    method = SimCLR(encoder, head, SimCLRAugment(8), NTXentLoss(temperature=0.3), num_classes=num_classes)
    for module in method.modules():  # running statistics that are not those of a fresh layer
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return method.double().train()


def batch(method: SimCLR, n: int = IMAGES) -> Batch:
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, method.keys(torch.arange(n), seed=0, epoch=0), torch.arange(n) % 3)


def gradient(method: Method, *, chunk_size: int, statistics="local", accumulate: int = 1) -> Gradient:
    accelerator = make_accelerator("no")
    return Gradient(method, method, accelerator, method.views, IMAGES, chunk_size, accumulate, statistics, seed=3)


def found(method: SimCLR, **settings) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, metrics and buffers after a step's gradient."""
    method = copy.deepcopy(method)
    metrics = gradient(method, **settings)(batch(method), 0)
    grads = {name: p.grad for name, p in method.named_parameters()}
    return grads, metrics, dict(method.named_buffers())


def by_hand(method: SimCLR, chunks: list[int]) -> dict[str, Tensor]:
    """Every chunk through the network with its graph, all at once; the gradient of the loss over all of them."""
    method = copy.deepcopy(method)
    given = batch(method)
    parts = []
    for images, keys in zip(given.images.split(chunks), given.keys.split(chunks), strict=True):
        parts.append(method(method.views(images, keys)))
    joined = type(parts[0])(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    method.loss(joined, given.labels)[0].backward()
    return {name: p.grad for name, p in method.named_parameters()}


@pytest.mark.parametrize("chunk_size", range(1, IMAGES + 2))
def test_without_batchnorm_chunks_of_any_size_give_the_gradient_of_the_whole_batch(chunk_size):
    method = simclr(group_norm)
    whole, metrics, _ = found(method, chunk_size=IMAGES)
    grads, chunked_metrics, _ = found(method, chunk_size=chunk_size)
    assert_close(grads, whole, rtol=1e-10, atol=1e-12)
    assert_close(chunked_metrics, metrics, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [3, 5, 6, 12])
def test_a_chunk_is_normalised_by_its_own_statistics(chunk_size):
    method = simclr()
    sizes = [len(part) for part in torch.arange(IMAGES).split(chunk_size)]
    grads, _, _ = found(method, chunk_size=chunk_size)
    assert_close(grads, by_hand(method, sizes), rtol=1e-10, atol=1e-12)


def test_running_statistics_move_once_a_step_with_those_of_the_first_chunk():
    method = simclr()
    _, _, buffers = found(method, chunk_size=4)
    alone = copy.deepcopy(method)
    given = batch(alone)
    alone(alone.views(given.images[:4], given.keys[:4]))
    assert_close(buffers, dict(alone.named_buffers()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 6, 12])
def test_global_statistics_give_the_gradient_of_the_whole_batch(chunk_size):
    method = simclr()
    whole, metrics, buffers = found(method, chunk_size=IMAGES)
    grads, global_metrics, global_buffers = found(method, chunk_size=chunk_size, statistics="global")
    assert_close(grads, whole, rtol=1e-10, atol=1e-12)
    assert_close(global_metrics, metrics, rtol=1e-10, atol=1e-12)
    assert_close(global_buffers, buffers, rtol=1e-10, atol=1e-12)


def test_chunk_statistics_are_not_those_of_the_batch():
    method = simclr()
    whole, _, _ = found(method, chunk_size=IMAGES)
    grads, _, _ = found(method, chunk_size=4)
    name = "encoder.layers.0.weight"
    assert (grads[name] - whole[name]).norm() > 0.01 * whole[name].norm()


@pytest.mark.parametrize("statistics", ["local", "global"])
def test_random_layers_draw_the_same_numbers_when_a_chunk_comes_again(statistics):
    method = simclr(group_norm if statistics == "local" else nn.BatchNorm2d, dropout=0.5)
    first, _, _ = found(method, chunk_size=4, statistics=statistics)
    again, _, _ = found(method, chunk_size=4, statistics=statistics)
    assert_close(again, first, rtol=0, atol=0)
    epsilon, name = 1e-6, "projector.0.weight"
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(method)
        moved.get_parameter(name).data[0, 0] += sign * epsilon
        metrics = gradient(moved, chunk_size=4, statistics=statistics)(batch(moved), 0)
        values.append(metrics["loss"])
    slope = (values[0] - values[1]) / (2 * epsilon)
    assert first[name][0, 0].item() == pytest.approx(slope.item(), rel=1e-4)


def test_views_without_keys_are_the_same_when_a_chunk_comes_again():
    method = simclr(group_norm)
    seen: dict[int, list[Tensor]] = {}

    def views(images, keys):
        found = method.views(images, keys) + 0.1 * torch.rand(())  # a number that no key gives
        seen.setdefault(int(keys[0]), []).append(found)
        return found

    replace(gradient(method, chunk_size=4), views=views)(batch(method), 0)
    assert sorted(map(len, seen.values())) == [1, 2, 2]  # the last chunk is made once
    assert all(torch.equal(found[0], found[-1]) for found in seen.values())
