"""A network that is only looked through."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cl_train._errors import InputError


@contextmanager
def frozen(network: nn.Module, *, name: str = "encoder") -> Iterator[None]:
    """Inference mode for all parts of a network (BatchNorm uses its running statistics), and back as each was.

    Args:
        network: Its parameters and buffers may not change within.
        name: What errors call it.

    Raises:
        InputError: At the end, if a parameter or buffer is no longer what it was: the network still trains.
    """
    modes = [(module, module.training) for module in network.modules()]
    before = fingerprints(network)
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
    for part, digest in fingerprints(network).items():
        if before.get(part) != digest:
            raise InputError(f"`{name}` must stay as it is in inference mode, {part} has changed: it still trains.")


class Frozen(nn.Module):
    """A network without gradient that is no part of who holds it: not moved, saved, counted or trained with it.

    Args:
        network: views -> features or logits, with `feature_dim` if it is to be an encoder.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.held = (network,)  # nn.Module does not look into tuples

    @property
    def feature_dim(self) -> int | None:
        """Of the network, if it has one."""
        return getattr(self.held[0], "feature_dim", None)

    def forward(self, views: Tensor) -> Tensor:
        """What the network says, without gradient."""
        with torch.no_grad():
            return self.held[0](views)


def fingerprints(network: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter and buffer."""
    return {
        name: digest_of(tensor)
        for tensors in (network.named_parameters(), network.named_buffers())
        for name, tensor in tensors
    }


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of all of a network's parameters and buffers."""
    return hashlib.sha256(repr(sorted(fingerprints(network).items())).encode()).hexdigest()
