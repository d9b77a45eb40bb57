"""Weights in and out of files: safetensors, which hold tensors and text and cannot run code."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn


def save_encoder(encoder: nn.Module, path: str | Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write an encoder's parameters and buffers to a safetensors file.

    The names are the module's own; for our ResNets they are torchvision's, so
    `torchvision.models.resnet50().load_state_dict(safetensors.torch.load_file(path), strict=False)` misses `fc` only.

    Args:
        encoder: Any module. Weights that it uses twice are written twice.
        path: File to write; it appears whole or not at all.
        metadata: Text to keep in the file's header, such as method, data set and epochs.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    # clones, because safetensors refuses tensors that share memory
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(save(state, metadata=metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_encoder(encoder: nn.Module, path: str | Path) -> dict[str, str]:
    """Read a file of `save_encoder` into a module of the same architecture.

    Args:
        encoder: Module to fill; unchanged when anything does not fit.
        path: File to read.

    Returns:
        The metadata that was saved.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is no safetensors file, or a name or a shape is not the module's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`path` must be a whole safetensors file, {path} is not: {error}.") from error
    wanted = encoder.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        expected = "nothing" if name not in wanted else f"shape {tuple(wanted[name].shape)}"
        found = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
        if expected != found:
            raise ValueError(f"`encoder` expects {expected} for {name!r}, {path} holds {found}.")
    encoder.load_state_dict(state)
    return metadata
