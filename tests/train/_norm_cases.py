"""Runs of networks with BatchNorm, for `_worker.py`: what it sees, on one process and on many."""

from pathlib import Path

import torch
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, SimCLR, make_accelerator, pretrain
from torch import Tensor, nn

IMAGES, BATCH, STEPS = 36, 12, 20


class Net(nn.Module):
    """Three layers that look at other images."""

    feature_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 12),
            nn.BatchNorm1d(12),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def run(out: Path, **settings) -> dict[str, Tensor]:
    """Weights and running statistics after the steps."""
    torch.manual_seed(5)
    projector = nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8))
    method = SimCLR(Net(), projector, SimCLRAugment(8), NTXentLoss(temperature=0.2)).double()
    generator = torch.Generator().manual_seed(0)
    data = ArrayDataset(torch.rand(IMAGES, 3, 8, 8, generator=generator, dtype=torch.float64))
    pretrain(
        method,
        data,
        epochs=7,
        batch_size=BATCH,
        warmup_epochs=1,
        out=out,
        optimizer=torch.optim.SGD(method.parameters(), 0.2, momentum=0.9),
        accelerator=make_accelerator("no"),
        progress=False,
        **({"max_steps": STEPS} | settings),
    )
    return {name: value.clone() for name, value in method.state_dict().items()}


def observe(folder: Path, *, processes: int) -> dict[str, dict[str, Tensor]]:
    """Where there is one process, chunks stand for those that a world of so many would have."""
    seen = {"synchronised": run(folder / "synchronised")}
    if processes > 1:
        seen["local"] = run(folder / "local", batchnorm="local", max_steps=5)
        seen["global"] = run(folder / "global", batchnorm="global", chunk_size=2, max_steps=5)
        seen["synchronised chunks"] = run(folder / "chunks", chunk_size=2, max_steps=5)
        seen["parts"] = run(folder / "parts", accumulate=2, max_steps=5)
        return seen
    seen["whole"] = run(folder / "whole", max_steps=5)
    for world in (2, 3):
        seen[f"{world} chunks"] = run(folder / f"{world}", chunk_size=BATCH // world, max_steps=5)
    return seen
