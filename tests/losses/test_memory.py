"""What the losses allocate, counted by torch's allocator: linear in the batch, whatever the loss."""

import pytest
import torch
from cl_losses import cross_domain_loss, info_nce_loss, nt_xent_loss, sup_con_loss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

D = 64
MIB = 2**20


def losses(n: int, temperature: float, *, d: int = D) -> dict[str, tuple[Tensor, object]]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, n, d, generator=generator).requires_grad_()
    labels, domains = torch.arange(n) % 10, torch.arange(n) // 2 % 2
    return {
        "nt_xent": (z, lambda z: nt_xent_loss(*z, temperature=temperature)),
        "info_nce": (z, lambda z: info_nce_loss(*z, temperature=temperature, symmetric=True)),
        "sup_con": (z, lambda z: sup_con_loss(z, labels, temperature=temperature)),
        "cross_domain": (z, lambda z: cross_domain_loss(z, labels, domains, temperature=temperature)),
    }


def peak_bytes(z: Tensor, loss) -> int:
    """The highest total during forward and backward, beyond inputs and gradients."""
    for _ in range(2):  # what is made once is not counted
        z.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            loss(z).backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest - z.numel() * z.element_size()


@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("n", [8, 1025, 3000])
def test_nt_xent_needs_three_copies_of_its_rows_and_16_mib_at_most(n, temperature):
    z, loss = losses(n, temperature)["nt_xent"]
    assert peak_bytes(z, loss) <= 3 * 2 * n * D * 4 + 16 * MIB


@pytest.mark.parametrize("name", ["info_nce", "sup_con", "cross_domain"])
@pytest.mark.parametrize(("n", "d"), [(1025, D), (3000, D), (1025, 1024)])  # wide rows show copies of them
def test_the_family_needs_at_most_twice_the_memory_of_nt_xent(n, d, name):
    z, loss = losses(n, 0.1, d=d)["nt_xent"]
    assert peak_bytes(*losses(n, 0.1, d=d)[name]) <= 2 * peak_bytes(z, loss)
