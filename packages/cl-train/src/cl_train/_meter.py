"""Running means that stay on the device until somebody looks."""

import time

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Means of scalars, and images per second, since the last look."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.images = 0
        self.since = time.monotonic()

    def add(self, scalars: dict[str, Tensor], *, images: int) -> None:
        """Count one step of `images` images over all processes."""
        for name, value in scalars.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += 1
        self.images += images

    def fetch(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; begins anew. This waits for the device."""
        means = accelerator.reduce(torch.stack([s.float() for s in self.sums.values()]) / self.count, reduction="mean")
        result = dict(zip(self.sums, means.tolist(), strict=True))
        now = time.monotonic()
        result["images_per_second"] = self.images / (now - self.since)
        self.sums, self.count, self.images, self.since = {}, 0, 0, now
        return result
