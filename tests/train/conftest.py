"""Every test starts as a process of its own would, on the CPU: no launcher's environment, no state in accelerate."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _a_process_of_its_own(monkeypatch):
    before = dict(os.environ)  # accelerate writes there too
    for name in before:
        if name in LAUNCHER or name.startswith("ACCELERATE_"):
            del os.environ[name]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)  # bits are compared, and GPUs reorder sums
    torch.set_num_threads(1)  # of tensors this small, several threads do nothing but wait for each other
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.clear()
    os.environ.update(before)
