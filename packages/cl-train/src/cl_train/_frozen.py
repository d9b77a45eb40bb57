"""A network that is only looked through."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cl_train._errors import InputError


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inference mode for all parts of a network (BatchNorm uses its running statistics), and back as each was.

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
    for name, digest in fingerprints(network).items():
        if before.get(name) != digest:
            raise InputError(f"`encoder` must stay as it is in inference mode, {name} has changed: it still trains.")


def fingerprints(network: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter and buffer."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in network.state_dict().items()
    }


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of all of a network's parameters and buffers."""
    return hashlib.sha256(repr(sorted(fingerprints(network).items())).encode()).hexdigest()
