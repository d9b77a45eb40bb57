"""The gradient of a batch whose chunks are normalised by the statistics of all of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cl_train._embeddings import fields_of, gradients_of, join
from cl_train._errors import InputError
from cl_train._loader import Batch
from cl_train._norms import batchnorms

if TYPE_CHECKING:
    from cl_train._step import Gradient

_ONCE = "`batchnorm` 'global' needs every BatchNorm to be used once, in one order; one is not, as BYOL's."


def global_gradient(gradient: "Gradient", batch: Batch, step: int) -> dict[str, Tensor]:
    r"""Gradient of the loss of a batch, chunk by chunk, with BatchNorm over the whole batch of all processes.

    Write $s_l$ for the first two moments of what layer $l$ sees, $s_l = \sum_i \varphi_l(x_i, s_{<l}) / N_l$ over
    chunks $i$. Forwards find $s_1, s_2, \dots$ in this order, as each depends on those before it. With the gradient
    $g_i$ of the loss with respect to the embeddings $y_i$, the derivatives $a_l = dL / ds_l$ follow in the other order,

    $$a_l = \sum_i \partial_{s_l} \Bigl( \langle y_i, g_i \rangle
    + \sum_{m > l} \langle \varphi_m(x_i), a_m \rangle / N_m \Bigr),$$

    and the gradient of the parameters is that of the same bracket with all layers, $s$ held fixed. Memory is that of a
    chunk. For $L$ layers every chunk takes about $1.5 L + 2$ forwards and $L / 2 + 1$ backwards.

    Args:
        gradient: Whose method, chunks and views are used.
        batch: This process's share.
        step: Number of the step.

    Returns:
        The method's metrics, and whether all was "finite".
    """
    chunks = batch.split(min(gradient.chunk_size, gradient.share), share=gradient.share)
    statistics = _Statistics(gradient.method)
    with statistics.in_place():
        embed = partial(_embed, gradient, statistics, chunks, step)
        with torch.no_grad():
            while statistics.incomplete:
                for part in range(len(chunks)):
                    statistics.collect(partial(embed, part))
                statistics.settle()
            joined = join([embed(part) for part in range(len(chunks))])
        loss, metrics = gradient.loss(joined, batch.labels)
        gradient.accelerator.backward(loss)
        gradients = gradients_of(joined, [len(chunk.keys) for chunk in chunks])
        for layer in reversed(range(len(statistics.order))):
            for part, given in enumerate(gradients):
                with statistics.differentiating(layer):
                    statistics.add_slope(layer, _bracket(embed(part), given, statistics.terms(above=layer)))
            statistics.settle_slope(layer)
        for part, given in enumerate(gradients):
            with gradient.averaging(last=part == len(chunks) - 1):
                _bracket(embed(part, direct=False), given, statistics.terms(above=-1)).backward()
    statistics.record()
    return metrics


def _embed(
    gradient: "Gradient", statistics: "_Statistics", chunks: list[Batch], step: int, part: int, *, direct: bool = True
) -> Any:
    statistics.seen = []
    return gradient.embed(chunks[part], step, part, direct=direct)


def _bracket(embeddings: Any, gradients: list[Tensor | None], terms: list[Tensor]) -> Tensor:
    pairs = zip(fields_of(embeddings), gradients, strict=True)
    own = [(field * given).sum() for field, given in pairs if field is not None and given is not None]
    return torch.stack([*own, *terms]).sum()


class _Enough(Exception):  # noqa: N818 - no error: the forward has seen what it was run for
    """A layer was reached whose statistics are not known yet."""


class _Statistics:
    """Moments of what each BatchNorm layer sees, and the derivatives of the loss with respect to them.

    Moments are about the running mean, so that the second does not drown in the first.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = batchnorms(module)
        self.order: list[_BatchNorm] = []  # in which a forward comes by
        self.moments: list[Tensor] = []  # (2, channels) each
        self.counts: list[Tensor] = []
        self.slopes: dict[int, Tensor] = {}  # of the loss, divided by the count
        self.seen: list[Tensor] = []  # sums of this forward, by layer
        self.sums: list[tuple[Tensor, int]] = []  # of the layer that is being collected
        self.incomplete = bool(self.layers)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the layers normalise by these moments."""
        for layer in self.layers:
            layer.forward = _Forward(self, layer)  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def collect(self, forward: Callable[[], Any]) -> None:
        """Run a chunk up to the first layer whose moments are not known."""
        try:
            forward()
        except _Enough:
            return
        self.incomplete = False

    def settle(self) -> None:
        """Make the moments of the layer that all chunks have reached, over all processes."""
        if not self.incomplete:
            missing = len(self.layers) - len(self.order)
            if missing:
                raise InputError(f"`batchnorm` 'global' needs every BatchNorm to see the batch, {missing} do not.")
            return
        total = torch.stack([sums for sums, _ in self.sums]).sum(0)
        count = total.new_tensor(float(sum(count for _, count in self.sums)))
        together = torch.cat([total.flatten(), count[None]])
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(together)
        self.sums = []
        self.counts.append(together[-1])
        self.moments.append((together[:-1] / together[-1]).view_as(total))
        self.incomplete = len(self.moments) < len(self.layers)

    def terms(self, *, above: int) -> list[Tensor]:
        """Of the last forward: what its rows did to the moments of later layers, times what that does to the loss."""
        return [(self.seen[layer] * self.slopes[layer]).sum() for layer in range(above + 1, len(self.order))]

    @contextmanager
    def differentiating(self, layer: int) -> Iterator[None]:
        """Within it a forward's graph leads to the moments of a layer."""
        self.moments[layer].requires_grad_()
        try:
            yield
        finally:
            self.moments[layer] = self.moments[layer].detach()

    def add_slope(self, layer: int, bracket: Tensor) -> None:
        """Add what a chunk does to the loss through the moments of a layer."""
        slope = torch.autograd.grad(bracket, self.moments[layer])[0]
        self.slopes[layer] = self.slopes[layer] + slope if layer in self.slopes else slope

    def settle_slope(self, layer: int) -> None:
        """Add up over processes, and share out among the rows that made the moments."""
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(self.slopes[layer])
        self.slopes[layer] = self.slopes[layer] / self.counts[layer]

    @torch.no_grad()
    def record(self) -> None:
        """Move the running statistics, once."""
        for layer, (first, second), count in zip(self.order, self.moments, self.counts, strict=True):
            if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
                continue
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            weight = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
            variance = (second - first**2) * count / (count - 1)
            mean = layer.running_mean + first.to(layer.running_mean.dtype)  # the moments are about the old one
            layer.running_var.lerp_(variance.to(layer.running_var.dtype), weight)
            layer.running_mean.lerp_(mean, weight)


class _Forward:
    """What a layer does instead of its own forward."""

    def __init__(self, statistics: _Statistics, layer: _BatchNorm) -> None:
        self.statistics, self.layer = statistics, layer

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise by the moments of the whole batch, or note them."""
        known, layer = self.statistics, self.layer
        index = len(known.seen)
        wide = torch.promote_types(x.dtype, torch.float32)
        shape = (1, -1, *[1] * (x.ndim - 2))
        origin = 0 if layer.running_mean is None else layer.running_mean.to(wide).view(shape)
        centred = x.to(wide) - origin
        axes = [0, *range(2, x.ndim)]
        known.seen.append(torch.stack([centred.sum(axes), centred.square().sum(axes)]))
        if index == len(known.moments):
            if not known.sums:
                if layer in known.order:
                    raise InputError(_ONCE)
                known.order.append(layer)
            known.sums.append((known.seen[index], x.numel() // x.shape[1]))
            raise _Enough
        if known.order[index] is not layer:
            raise InputError(_ONCE)
        first, second = known.moments[index].view(2, *shape)
        normalised = (centred - first) * torch.rsqrt(second - first**2 + layer.eps)
        if layer.weight is not None:
            normalised = normalised * layer.weight.view(shape)
        if layer.bias is not None:
            normalised = normalised + layer.bias.view(shape)
        return normalised.to(x.dtype)
