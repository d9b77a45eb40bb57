"""Runs across domains, for `_worker.py`: labels of unequally many images on each process, and prototypes."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from cl_augment import SimCLRAugment
from cl_losses import CrossDomainLoss
from cl_train import (
    ArrayDataset,
    CrossDomain,
    DomainBatches,
    DomainDataset,
    Relabelled,
    make_accelerator,
    pretrain,
    prototypes_of,
)
from torch import nn

SOURCE, TARGET, BATCH, STEPS = 24, 18, 12, 5


def data() -> DomainDataset:
    """Noise in float64; the second domain has labels for a third of its images, and lacks a class."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(SOURCE + TARGET, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.arange(TARGET) < TARGET // 3, torch.arange(TARGET) % 2, -1)
    source = ArrayDataset(pixels[:SOURCE], torch.arange(SOURCE) % 3, classes=["a", "b", "c"])
    return DomainDataset({"s": source, "t": Relabelled(ArrayDataset(pixels[SOURCE:]), labels, classes=["a", "b"])})


def run(out: Path, net: Callable[[], nn.Module], *, chunk_size: int | None = None) -> dict:
    """Weights with prototypes, and the log."""
    torch.manual_seed(5)
    dataset = data()
    loss = CrossDomainLoss(temperature=0.2, unlabelled="own_domain")
    means = prototypes_of(dataset, 8, decay=0.7)
    method = CrossDomain(net(), nn.Linear(12, 8), SimCLRAugment(8), loss, num_classes=3, prototypes=means).double()
    result = pretrain(
        method,
        dataset,
        epochs=2,
        batch_size=BATCH,
        chunk_size=chunk_size,
        warmup_epochs=0.5,
        out=out,
        optimizer=torch.optim.SGD(method.parameters(), 0.5, momentum=0.9),
        sampler=DomainBatches(dataset, batch_size=BATCH, unlabelled=0.4, seed=1),
        max_steps=STEPS,
        log_every=1,
        accelerator=make_accelerator("no"),
        progress=False,
    )
    history = [{name: value for name, value in entry.items() if "per_second" not in name} for entry in result.history]
    return {"weights": {name: value.clone() for name, value in method.state_dict().items()}, "history": history}


def observe(folder: Path, net: Callable[[], nn.Module]) -> dict[str, dict]:
    """The run; in chunks; and with the bug that prototypes are of each process's own rows."""
    seen = {"whole": run(folder / "domains", net), "chunks": run(folder / "domains in chunks", net, chunk_size=3)}
    with mock.patch("cl_train._prototypes.distributed", mock.Mock(is_initialized=lambda: False)):
        seen["own prototypes"] = run(folder / "domains, own prototypes", net)
    return seen
