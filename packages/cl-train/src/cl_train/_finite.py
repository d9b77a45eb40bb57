"""Steps that are taken back on the device when a number is not finite: the host need not be asked."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OnNonfinite = Literal["stop", "skip"]
_OVERFLOWS = 50  # in a row are no search for a scale any more: 2**16, halved as often, is 2**-34


class FiniteGuard:
    """Undoes steps in which an embedding, the loss or a gradient was not finite, on all processes alike.

    Around each step: `remember`, then forward and backward, then `judge`, then the optimiser, then `settle`. What is
    taken back are parameters, buffers and the optimiser's state, so a bad batch leaves nothing behind. `count` and
    `first` are looked at when the log is written; nothing else waits for the device, but for the optimiser's state in
    host memory (Adam's number of steps, unless it is `fused` or `capturable`) and for what its first step makes.

    Args:
        module: Its parameters and buffers are guarded.
        optimizer: Likewise its parameters and its state.
        on_nonfinite: "skip" takes back the bad steps; "stop" also all later ones, until the host has noticed.
        skipped: Bad steps of the run before.
        scaled: Whether a gradient scaler looks after the gradients (fp16): it makes them infinite on purpose, and skips
            such steps itself. 50 of them in a row count as not finite, the 50th as the first bad step.

    Attributes:
        count: Bad steps so far, int64 on the device.
        first: Number of the first, or -1.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, *, on_nonfinite: OnNonfinite, scaled: bool, skipped: int = 0
    ) -> None:
        self.module, self.optimizer, self.scaled, self.before = module, optimizer, scaled, skipped
        self.sticky = on_nonfinite == "stop"
        device = next(module.parameters()).device
        self.count = torch.full((), skipped, dtype=torch.int64, device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.overflows = torch.zeros((), dtype=torch.int64, device=device)
        self.kept: list[tuple[list[Tensor], Tensor]] = []
        self.entries: list[tuple[dict[Any, Any], dict[Any, Any]]] = []

    def ended(self) -> bool:
        """Whether the run is to stop; this waits for the device."""
        return self.sticky and int(self.first) >= 0

    def skipped(self) -> int:
        """Bad steps so far; this waits for the device."""
        return int(self.count)

    def forget(self) -> None:
        """As if there had been no bad step: what follows starts from the weights before it."""
        self.first.fill_(-1)
        self.overflows.zero_()
        self.count.fill_(self.before)

    @torch.no_grad()
    def remember(self) -> None:
        """Note everything that a step changes."""
        groups, states = self.optimizer.param_groups, self.optimizer.state
        tensors = [*self.module.parameters(), *self.module.buffers()]
        tensors += [parameter for group in groups for parameter in group["params"]]
        tensors += [value for state in states.values() for value in state.values() if isinstance(value, Tensor)]
        self.kept = [(flat, torch.cat(flat)) for flat in _by_kind({id(tensor): tensor for tensor in tensors}.values())]
        # what is no tensor, or becomes another one, is taken back by name
        self.entries = [(entries, dict(entries)) for entries in [states, *states.values(), *groups]]

    @torch.no_grad()
    def judge(self, finite: Tensor, *, step: int) -> Tensor:
        """Whether this step counts, as a bool on the device: `finite` of all processes, and finite gradients.

        Gradients of a step that does not count are set to zero, so that no optimiser chokes on them.
        """
        gradients = _by_kind(p.grad for p in self.module.parameters() if p.grad is not None)
        joined = [torch.cat(flat) for flat in gradients]
        sound = torch.stack([torch.ones_like(finite), *[values.isfinite().all() for values in joined]]).all()
        if self.scaled:
            self.overflows = torch.where(sound, 0, self.overflows + 1)
            sound = self.overflows < _OVERFLOWS
        finite = finite & sound
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            votes = finite.to(torch.uint8)
            torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
            finite = votes.bool()
        counts = finite & (self.first < 0) if self.sticky else finite
        self.count = self.count + ~(finite if not self.sticky else finite | (self.first >= 0))
        self.first = torch.where(~finite & (self.first < 0), step, self.first)
        if not self.scaled and not (counts.device.type == "cpu" and bool(counts)):
            for flat, values in zip(gradients, joined, strict=True):
                _write(flat, torch.where(counts, values, 0))
        return counts

    @torch.no_grad()
    def settle(self, counts: Tensor) -> None:
        """Take back what happened since `remember` unless the step counts."""
        if counts.device.type == "cpu" and bool(counts):  # to look costs nothing here
            self.kept, self.entries = [], []
            return
        for flat, before in self.kept:
            _write(flat, torch.where(counts.to(before.device), torch.cat(flat), before))
        changed = [(entries, before) for entries, before in self.entries if _differ(entries, before)]
        if changed and not bool(counts):
            for entries, noted in changed:
                entries.clear()
                entries.update(noted)
        self.kept, self.entries = [], []


def _differ(entries: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return entries.keys() != before.keys() or any(value is not before[name] for name, value in entries.items())


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Their memory as flat tensors, those of one dtype and device together."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(_flat(tensor.detach()))
    return list(kinds.values())


def _flat(tensor: Tensor) -> Tensor:
    """The memory of a tensor in its own order, so that nothing is copied."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.new_empty(0).set_(tensor.untyped_storage())  # expanded, sliced or turned: all that is behind it


def _write(flat: list[Tensor], values: Tensor) -> None:
    torch._foreach_copy_(flat, list(values.split([part.numel() for part in flat])))
