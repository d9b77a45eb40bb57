"""An encoder that is only looked through."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Inference mode for all parts of a network (BatchNorm uses its running statistics), and back as each was."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
