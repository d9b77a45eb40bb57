"""LARS, the optimiser of large batches, as SimCLR's authors wrote it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class LARS(Optimizer):
    r"""Momentum SGD whose step on each tensor is proportional to the tensor's norm.

    For a parameter w with gradient g, weight decay $\lambda$, momentum m, learning rate $\gamma$ and coefficient
    $\eta$:

    $$g' = g + \lambda w, \qquad r = \eta \lVert w \rVert / \lVert g' \rVert, \qquad
    v \leftarrow m v + \gamma r g', \qquad w \leftarrow w - v,$$

    with r = 1 where a norm is zero, and for groups with `adapt=False`. The learning rate is inside the buffer v and the
    decay inside the norm, as in SimCLR's code. BYOL's authors have the rate outside, `lr_in_momentum=False`,

    $$v \leftarrow m v + r g', \qquad w \leftarrow w - \gamma v,$$

    which is the same for a constant rate; where it falls, the step falls with it at once. Lightning and lightly place
    rate and decay otherwise. The step is a few foreach operations over all tensors of a group, with no synchronisation
    with the device.

    Args:
        params: Parameters or groups. A group may set `lr`, `momentum`, `weight_decay`, `eta` and
            `adapt` (default True): whether to scale by the norms. Make them by `lars_groups`.
        lr: Learning rate, > 0; 4.8 in the paper at a batch of 4096.
        momentum: In [0, 1).
        weight_decay: >= 0; 1e-6 in the paper.
        eta: Trust coefficient, > 0.
        lr_in_momentum: Whether the buffer holds steps (SimCLR) or directions (BYOL).

    Raises:
        ValueError: An argument is out of its range.

    You et al., Large Batch Training of Convolutional Networks, 2017, arXiv:1708.03888; authors' variants: SimCLR,
    lars_optimizer.py with classic momentum; BYOL, utils/optimizers.py.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        lr_in_momentum: bool = True,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"`lr` must be positive, got {lr}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {momentum}.")
        if not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must be at least 0, got {weight_decay}.")
        if not eta > 0:
            raise ValueError(f"`eta` must be positive, got {eta}.")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        super().__init__(params, defaults | {"lr_in_momentum": lr_in_momentum})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state that is older than one of the settings."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("lr_in_momentum", True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, recomputes the loss first and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(params, [p.grad for p in params], group)
        return loss

    def _step_group(
        self, params: list[Tensor], updates: list[Tensor] | tuple[Tensor, ...], group: dict[str, Any]
    ) -> None:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        if group["weight_decay"] > 0:
            updates = torch._foreach_add(updates, params, alpha=group["weight_decay"])
        torch._foreach_mul_(buffers, group["momentum"])
        inner, outer = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        if group["adapt"]:
            weight_norm = torch.stack(torch._foreach_norm(params))
            update_norm = torch.stack(torch._foreach_norm(updates))
            trust = torch.where((weight_norm > 0) & (update_norm > 0), group["eta"] * weight_norm / update_norm, 1.0)
            torch._foreach_add_(buffers, torch._foreach_mul(updates, list((inner * trust).unbind())))
        else:
            torch._foreach_add_(buffers, updates, alpha=inner)
        torch._foreach_sub_(params, buffers, alpha=outer)


def lars_groups(module: nn.Module, *, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Parameter groups as the papers use LARS: BatchNorm, biases and SimCLR's probe are neither decayed nor adapted.

    What is one-dimensional (biases, scales and shifts of norms) and what belongs to a submodule named `probe` goes
    into a group of its own with `adapt=False` and no decay, so it gets the full learning rate. (BYOL's classifier is
    adapted and decayed, as by its authors; it has another name.)

    Args:
        module: Its trainable parameters are grouped.
        weight_decay: Of the other group, >= 0; None leaves it to the optimiser's own.

    Returns:
        Two groups, for `LARS` (or, without `adapt`, for any optimiser of torch).
    """
    adapted: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim <= 1 or "probe" in name.split(".")
            (plain if is_plain else adapted).append(parameter)
    first: dict[str, Any] = {"params": adapted, "adapt": True}
    if weight_decay is not None:
        first["weight_decay"] = weight_decay
    return [first, {"params": plain, "weight_decay": 0.0, "adapt": False}]
