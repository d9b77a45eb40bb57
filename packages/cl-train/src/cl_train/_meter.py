"""Running means that stay on the device until somebody looks."""

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Means of scalars over the steps that count, and images per second, since the last look."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count: Tensor | None = None
        self.images = 0
        self.since = time.monotonic()

    def add(self, scalars: dict[str, Tensor], counts: Tensor, *, images: int) -> None:
        """Note one step of `images` images over all processes; `counts`: whether it is among those that count."""
        for name, value in scalars.items():
            value = torch.where(counts, value, 0).float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count = counts.long() if self.count is None else self.count + counts
        self.images += images

    def fetch(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes, none without a step that counts; begins anew. This waits for the device."""
        if self.count is None or int(self.count) == 0:
            result = {}
        else:
            means = accelerator.reduce(torch.stack(list(self.sums.values())) / self.count, reduction="mean")
            result = dict(zip(self.sums, means.tolist(), strict=True))
        now = time.monotonic()
        result["images_per_second"] = self.images / (now - self.since)
        self.sums, self.count, self.images, self.since = {}, None, 0, now
        return result

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """What a restart in between two looks needs, for all processes: numbers that JSON keeps to the last bit."""
        if self.count is None or int(self.count) == 0:
            return {}
        own = torch.stack([*self.sums.values(), self.count.float()])[None]
        rows = accelerator.gather(own).tolist()
        return {"names": list(self.sums), "rows": rows}

    def restore(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Go on from a `state`; its images are not among those per second."""
        if state:
            rows, device = state["rows"], accelerator.device
            own = accelerator.process_index if len(rows) == accelerator.num_processes else None
            # of other processes than these, each takes their mean: that of all of these is the same then
            *sums, count = (
                rows[own] if own is not None else (sum(column) / len(rows) for column in zip(*rows, strict=True))
            )
            self.sums = {
                name: torch.tensor(value, device=device) for name, value in zip(state["names"], sums, strict=True)
            }
            self.count = torch.tensor(int(count), device=device)
