"""Embeddings of chunks: put together for the loss, and their gradients taken apart again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def fields_of(embeddings: Any) -> list[Tensor | None]:
    """The tensors of a tensor or a NamedTuple."""
    return [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)


def width_of(embeddings: Any) -> int:
    """Dimensions of the first tensor, which is what a method compares."""
    first = fields_of(embeddings)[0]
    assert first is not None
    return first.shape[1]


def like(embeddings: Any, fields: list[Tensor | None]) -> Any:
    """Other tensors in the form of these embeddings."""
    return fields[0] if isinstance(embeddings, Tensor) else embeddings._make(fields)


def join(parts: list[Any]) -> Any:
    """Embeddings of all chunks, as leaves that collect the gradient of the loss."""
    columns = zip(*map(fields_of, parts), strict=True)
    leaves = [
        None if column[0] is None else torch.cat([part.detach() for part in column]).requires_grad_()
        for column in columns
    ]
    return like(parts[0], leaves)


def gradients_of(joined: Any, sizes: list[int]) -> list[list[Tensor | None]]:
    """What the leaves have collected, by chunk."""
    columns: list[Sequence[Tensor | None]] = []
    for leaf in fields_of(joined):
        grad = None if leaf is None else leaf.grad
        columns.append([None] * len(sizes) if grad is None else grad.split(sizes))
    return [list(row) for row in zip(*columns, strict=True)]


def backward(embeddings: Any, gradients: list[Tensor | None]) -> None:
    """Go on from the gradient of embeddings to that of the parameters."""
    pairs = [
        (field, gradient)
        for field, gradient in zip(fields_of(embeddings), gradients, strict=True)
        if field is not None and gradient is not None
    ]
    torch.autograd.backward([field for field, _ in pairs], [gradient for _, gradient in pairs])
