"""Being asked to stop: every process ends after the same step, saves, and leaves with a code that says why."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

# What accelerate launch and torchrun tell their processes. The first leaves its only process behind when it is ended,
# and both leave all when they are killed.
_LAUNCHERS = {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"}
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(SystemExit):
    """A run was asked to stop and has saved a checkpoint; uncaught, it ends the process with code 128 + signal.

    That is 143 for SIGTERM, 130 for SIGINT (Ctrl-C), 138 for SIGUSR1: what a shell reports of a process that such a
    signal ended. The same call goes on from the checkpoint.

    Attributes:
        signal: Number of the signal.
        step: Steps taken, which the checkpoint holds.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(128 + signal)
        self.signal, self.step = signal, step


class StopRequest:
    """Notices SIGTERM, SIGINT and SIGUSR1, and the death of a launcher, on any process.

    Processes tell each other through a group of their own on the CPU, a step late, so that nobody waits for a device.

    Attributes:
        received: The first signal that this process was sent, 0 for none.
        signal: The one that all processes stop for, 0 for none.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.received = self.signal = 0
        self.launcher = os.getppid() if _LAUNCHERS & os.environ.keys() else None
        several = accelerator.num_processes > 1
        self.group: Any = distributed.new_group(backend="gloo") if several else None
        self.pending: tuple[torch.Tensor, distributed.Work | None] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it signals are noticed and do nothing else; again and again does no harm. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets no other thread handle signals
            return
        before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal to stop for after this step, 0 for none: the same on all processes that have called as often."""
        if self.launcher is not None and os.getppid() != self.launcher:
            self.received = self.received or signal.SIGTERM
        answer = self._answer()
        self._ask()
        self.signal = self.signal or (self.received if self.group is None else answer)
        return self.signal

    def close(self) -> None:
        """Agree for the last time, on what came after the last step too; called by all processes."""
        self.agreed()
        self.signal = self.signal or self._answer()
        if self.group is not None:
            distributed.destroy_process_group(self.group)
            self.group = None

    def _ask(self) -> None:
        if self.group is not None:
            own = torch.tensor([self.received])
            work = distributed.all_reduce(own, distributed.ReduceOp.MAX, group=self.group, async_op=True)
            self.pending = own, work

    def _answer(self) -> int:
        if self.pending is None:
            return 0
        answer, work = self.pending
        if work is not None:
            work.wait()
        self.pending = None
        return int(answer)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
