"""Checks of what is in a tensor, without waiting for a GPU."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class _Copied(NamedTuple):
    """The outcome of a check on its way to the host."""

    ok: Tensor
    arrived: torch.cuda.Event
    message: str


_on_the_way: deque[_Copied] = deque()


def require(ok: Tensor, message: str) -> None:
    """Raise ValueError with `message` unless `ok`, a scalar of bool.

    On the CPU at once. On a GPU that would make the host wait for all that is queued, so the outcome is copied while
    work goes on, and `raise_what_arrived` raises in a later call.
    """
    if ok.device.type != "cuda":
        if not ok:
            raise ValueError(message)
        return
    if torch.cuda.is_current_stream_capturing():  # a graph that is replayed has no later call
        return
    with torch.cuda.device(ok.device):  # an event is of the stream of the current device
        copy = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True).copy_(ok, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
    _on_the_way.append(_Copied(copy, arrived, message))


def raise_what_arrived() -> None:
    """Raise ValueError if a check of an earlier call has failed by now; never waits."""
    if _on_the_way and torch.cuda.is_current_stream_capturing():  # asking an event would end the capture
        return
    while _on_the_way and _on_the_way[0].arrived.query():
        outcome = _on_the_way.popleft()
        if not outcome.ok:
            _on_the_way.clear()
            raise ValueError(f"In an earlier call on a GPU: {outcome.message}")
