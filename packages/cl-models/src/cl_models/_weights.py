"""Weights in and out of files: safetensors, which hold tensors and text and cannot run code."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

import cl_models  # the package, not names of it: they are there only once it has read this file

Normalisation = tuple[Sequence[float], Sequence[float]] | Literal["none"]


def save_encoder(
    encoder: nn.Module,
    path: str | Path,
    *,
    method: str | None = None,
    data: str | None = None,
    epochs: int | None = None,
    normalisation: Normalisation | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write an encoder's parameters and buffers to a safetensors file, and what they are to its header.

    The names are the module's own; for our ResNets they are torchvision's, so
    `torchvision.models.resnet50().load_state_dict(safetensors.torch.load_file(path), strict=False)` misses `fc` only.

    The header always holds "format" ("pt"), "cl_models" and "torch" (versions) and "architecture": the `config` of our
    ResNets as JSON, the name of any other class. What is not given is not noted.

    Args:
        encoder: Any module. Weights that it uses twice are written twice.
        path: File to write; it appears whole or not at all.
        method: What it was trained with, such as "SimCLR".
        data: What it was trained on, such as "CIFAR-10".
        epochs: For how long, >= 0.
        normalisation: (mean, std), one number per channel each, which pixels in [0, 1] were shifted and divided by;
            "none" where they go in as they are, as SimCLR's do.
        metadata: Any other text.

    Raises:
        OSError: The file cannot be written.
        ValueError: What the header shall hold is given twice, is no text or is out of its range.
    """
    path = Path(path)
    header = header_of(encoder, method=method, data=data, epochs=epochs, normalisation=normalisation, metadata=metadata)
    # clones, because safetensors refuses tensors that share memory
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(save(state, metadata=header))
            file.flush()
            os.fsync(file.fileno())  # or the new name may outlive a power cut that the content does not
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_encoder(encoder: nn.Module, path: str | Path) -> dict[str, str]:
    """Read a file of `save_encoder` into a module of the same architecture.

    Args:
        encoder: Module to fill; unchanged when anything does not fit.
        path: File to read.

    Returns:
        The text of the file's header, as `save_encoder` describes it; empty where the file has none.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is no safetensors file, a name or a shape is not the module's, or the header says that our
            ResNet was built with another argument, such as `variant`, which names and shapes need not show.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            state: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"`path` must be a whole safetensors file, {path} is not: {error}.") from error
    wanted = encoder.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        expected = "nothing" if name not in wanted else f"shape {tuple(wanted[name].shape)}"
        found = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
        if expected != found:
            raise ValueError(f"`encoder` expects {expected} for {name!r}, {path} holds {found}.")
    if isinstance(encoder, cl_models.ResNet):
        for key, there in _config(header).items():
            # widths that round to the same channels make the same network
            if key != "width" and there != encoder.config.get(key):
                raise ValueError(f"`encoder` has {key} {encoder.config.get(key)!r}, {path} holds {there!r}.")
    encoder.load_state_dict(state)
    return header


def header_of(
    encoder: nn.Module,
    *,
    method: str | None = None,
    data: str | None = None,
    epochs: int | None = None,
    normalisation: Normalisation | None = None,
    metadata: dict[str, str] | None = None,
) -> dict[str, str]:
    """The header that `save_encoder` writes."""
    if epochs is not None and not epochs >= 0:
        raise ValueError(f"`epochs` must be at least 0, got {epochs}.")
    header = {
        "format": "pt",  # the framework; transformers and others insist on it
        "cl_models": cl_models.__version__,
        "torch": str(torch.__version__),
        "architecture": _architecture(encoder),
    }
    optional = {
        "method": method,
        "data": data,
        "epochs": None if epochs is None else str(epochs),
        "normalisation": None if normalisation is None else _text(normalisation),
    }
    header |= {key: text for key, text in optional.items() if text is not None}
    twice = header.keys() & (metadata or {}).keys()
    if twice:
        raise ValueError(f"`metadata` must not repeat what the header has already, got {', '.join(sorted(twice))}.")
    header |= metadata or {}
    for key, text in header.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(f"The header must hold text, got {text!r} for {key!r}.")
    return header


def _architecture(encoder: nn.Module) -> str:
    if isinstance(encoder, cl_models.ResNet):
        return json.dumps(encoder.config)
    return f"{type(encoder).__module__}.{type(encoder).__qualname__}"


def _config(header: dict[str, str]) -> dict[str, object]:
    """The arguments of our ResNet in a header; none in that of another class or tool."""
    try:
        config = json.loads(header.get("architecture", ""))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _text(normalisation: Normalisation) -> str:
    if normalisation == "none":
        return normalisation
    if isinstance(normalisation, str) or len(normalisation) != 2:
        raise ValueError(f"`normalisation` must be 'none' or a mean and a standard deviation, got {normalisation!r}.")
    mean, std = ([float(value) for value in values] for values in normalisation)
    if len(mean) != len(std) or not mean:
        raise ValueError(
            f"`normalisation` must have a mean and a standard deviation per channel, got {len(mean)} and {len(std)}."
        )
    if not all(math.isfinite(value) for value in mean + std) or min(std) <= 0:
        raise ValueError(f"`normalisation` must be finite, deviations positive, got mean {mean} and deviation {std}.")
    return json.dumps({"mean": mean, "std": std})
