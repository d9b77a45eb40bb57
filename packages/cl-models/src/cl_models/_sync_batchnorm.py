"""BatchNorm over the rows of all processes: torch's layer on CUDA, and one of ours where torch has none."""

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def sync_batchnorm(module: nn.Module, *, group: distributed.ProcessGroup | None = None) -> nn.Module:
    """Let every BatchNorm of a module take its training statistics over the rows of all processes.

    Each process may have its own number of rows, also none. Outputs and gradients are those of one process with all
    rows; the gradients of scale and shift are each process's own sums, which DistributedDataParallel averages as it
    does all others. Forward and backward wait for the other processes once per layer, so all of them must go through
    the same layers, in training mode. In evaluation mode nothing changes.

    Convert after the module is on its device and before DistributedDataParallel: layers on CUDA become
    `torch.nn.SyncBatchNorm`, whose kernels are fused; others become a layer of ours, which works on any device, so
    that a network can be tested on several processes without a GPU. Ours computes statistics in float32, in float64
    for float64 input.

    Args:
        module: Any module, changed in place: the layers become layers of another class, and keep their parameters,
            buffers, names, hooks and modes. Layers that are synchronised already stay as they are, group included.
        group: The processes that share the statistics, None for all. Where torch.distributed is not initialised or
            the group has one process, the layers do what they did before.

    Returns:
        The module.

    Raises:
        ValueError: A layer is a BatchNorm of another class than torch's `BatchNorm1d`, `BatchNorm2d` and
            `BatchNorm3d`, whose forward may do more (timm's `BatchNormAct2d` also activates); or this process is not
            in `group`. The module is then unchanged.
    """
    if group is not None and distributed.get_rank(group) < 0:
        raise ValueError("`group` must have this process as a member, got a group of others.")
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]
    for name, layer in layers:
        if type(layer) not in SYNCHRONISED and not isinstance(layer, nn.SyncBatchNorm | _Synchronised):
            kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
            where = f"{name!r}" if name else "it"
            raise ValueError(f"`module` must hold no BatchNorm but torch's 1d, 2d and 3d, {where} is a {kind}.")
    for _, layer in layers:
        if type(layer) in SYNCHRONISED:
            tensor = next(chain(layer.parameters(), layer.buffers()), None)
            on_cuda = tensor is not None and tensor.is_cuda
            # Another class, not another object: hooks, and whatever else refers to the layer, keep working.
            layer.__class__ = nn.SyncBatchNorm if on_cuda else SYNCHRONISED[type(layer)]
            layer.process_group = group  # type: ignore[assignment]  # the attribute of torch's SyncBatchNorm
    return module


class _Synchronised(_BatchNorm):
    """A BatchNorm of several processes on any device, without the dimensions it takes.

    It is no `nn.SyncBatchNorm`, because DistributedDataParallel refuses those on the CPU.
    """

    process_group: distributed.ProcessGroup | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Normalise, scale and shift, shape (n, c, ...)."""
        if not self.training or _world(self.process_group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        if input.shape[1] != self.num_features:
            raise ValueError(f"`input` must have {self.num_features} channels, got {input.shape[1]}.")
        mean, squares, count = _combined(_gathered(_moments(input.detach()), self.process_group))
        # To look at the count waits for the device. Who has two values knows the answer; with one in all, nobody has.
        if _values(input) < 2 and count < 2:
            raise ValueError(f"`input` must have more than 1 value per channel on all processes, got {int(count)}.")
        self._record(mean, squares / (count - 1))
        scale = torch.rsqrt(squares / count + self.eps)
        return _Normalise.apply(input, self.weight, self.bias, mean, scale, count, self.process_group)

    def _record(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        factor: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean of all batches; as a tensor, since a number waits for the device
                factor = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """BatchNorm of several processes, shape (n, c) or (n, c, l)."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """BatchNorm of several processes, shape (n, c, h, w)."""


class SynchronisedBatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """BatchNorm of several processes, shape (n, c, d, h, w)."""


SYNCHRONISED: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    nn.BatchNorm3d: SynchronisedBatchNorm3d,
}


def _world(group: distributed.ProcessGroup | None) -> int:
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


def _values(x: Tensor) -> int:
    """Number of values per channel."""
    return math.prod((*x.shape[:1], *x.shape[2:]))


def _dims(x: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, x.dim())]


def _spread(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (x.dim() - 2))


def _moments(x: Tensor) -> Tensor:
    """Means, sums of squared deviations from them, and the number of values, shape (2 c + 1,); float32 or float64."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = _values(x)
    if count == 0:
        return x.new_zeros(2 * x.shape[1] + 1)
    mean = x.mean(_dims(x))
    squares = (x - _spread(mean, x)).square().sum(_dims(x))
    return torch.cat([mean, squares, mean.new_full((1,), count)])


def _gathered(moments: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """What `_moments` gave on each process, shape (processes, 2 c + 1)."""
    parts = [torch.empty_like(moments) for _ in range(_world(group))]
    distributed.all_gather(parts, moments, group=group)
    return torch.stack(parts)


def _combined(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and number of values of all processes together.

    By the formula of Chan, Golub and LeVeque (Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979), because a difference of mean squares loses a small variance beside a large mean.
    """
    channels = moments.shape[1] // 2
    means, squares, counts = moments.split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0), count


class _Normalise(Function):
    """(x - mean) * scale * weight + bias, where mean and scale are functions of the x of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
        group: distributed.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group = group
        y = x - _spread(mean, x)
        y *= _spread(scale if weight is None else scale * weight, x)
        if bias is not None:
            y += _spread(bias, x)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dy = dy.to(mean.dtype)
        x_hat = (x - _spread(mean, x)) * _spread(scale, x)
        own = torch.cat([dy.sum(_dims(x)), (dy * x_hat).sum(_dims(x))])
        dx = None
        if ctx.needs_input_grad[0]:
            total = own.clone()
            distributed.all_reduce(total, group=ctx.group)
            sum_dy, sum_dy_x_hat = (total / count).chunk(2)
            dx = dy - _spread(sum_dy, x)
            dx -= x_hat * _spread(sum_dy_x_hat, x)
            dx *= _spread(scale if weight is None else scale * weight, x)
        d_bias, d_weight = own.chunk(2)
        wanted = zip((dx, d_weight, d_bias), ctx.needs_input_grad[:3], strict=True)
        # autograd casts each to the dtype of what it is the gradient of
        return *(gradient if needed else None for gradient, needed in wanted), None, None, None, None
