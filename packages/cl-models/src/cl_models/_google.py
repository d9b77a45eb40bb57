"""The SimCLR authors' checkpoints: their variables, by the order in which their code creates them, as our modules."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cl_models._blocks import BasicBlock, Bottleneck
from cl_models._heads import ProjectionHead
from cl_models._resnet import DEPTHS, ResNet
from cl_models._tensor_bundle import read_index, read_tensor

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
STEPS = {"global_step", "beta1_power", "beta2_power"}  # how far the training was
SLOTS = ("/Momentum", "/Adam", "/Adam_1")  # what an optimizer keeps for a variable
AVERAGES = "ema_model/"
OBJECTS = ("/.ATTRIBUTES/VARIABLE_VALUE", "_CHECKPOINTABLE_OBJECT_GRAPH")  # in names of TensorFlow 2

Shapes = dict[str, tuple[int, ...]]


class GoogleSimCLR(NamedTuple):
    """A checkpoint of the SimCLR authors as modules, in evaluation mode.

    Attributes:
        encoder: The network, with `variant="google"`; images (n, in_channels, h, w) in [0, 1] -> (n, feature_dim).
        projector: The projection head, or None where the file has none, as in SimCLR v1's.
        classifier: The linear classifier on features, or None.
    """

    encoder: ResNet
    projector: ProjectionHead | None
    classifier: nn.Linear | None


def load_google_simclr(prefix: str | Path) -> GoogleSimCLR:
    """The SimCLR authors' TensorFlow checkpoints, v1 and v2, without TensorFlow.

    Architecture, width and heads follow from the variables' names and shapes. The weights are the authors' bit by bit;
    features are equal up to the order of floating-point sums, since `variant="google"` builds their network.

    * Images are pixels in [0, 1]: the authors subtract no mean and divide by no deviation.
    * Files of SimCLR v1 hold no projector.
    * In fine-tuned files of SimCLR v2 the classifier may follow the projector's first layer,
      `classifier(projector(features, until=1))`. The file does not say so, and both have the same width: the authors
      fine-tuned from the first layer (arXiv:2006.10029, section 2), their linear evaluation is on the features.
    * Left out are `global_step`, what optimizers keep (`.../Momentum`), and the moving averages `ema_model/...` that
      v2's files are reported to hold as a second copy (github.com/google-research/simclr, issue 88). The authors'
      fine-tuning starts from `base_model/...`, which is what is read here. What is left after that raises.

    This is tested for format: against a checkpoint that the authors' code wrote with random weights (ResNet-18), and
    their names and shapes of ResNet-50 with and without selective kernels. The published files were not tried.

    Args:
        prefix: Path without ".index" and ".data-00000-of-00001", such as "r50_1x_sk0/model.ckpt-250228". TensorFlow
            2's files of the same models (`saved_model`) name their variables otherwise and are refused.

    Returns:
        Encoder, projector and classifier in evaluation mode, on the CPU, float32, their parameters requiring gradients
        as usual. Call `.train()` to go on training.

    Raises:
        OSError: There is no such file (the message says which prefixes there are), or it cannot be read.
        ValueError: A file is cut off or damaged (everything read is checked by its checksum), a variable has another
            shape than its layer, one is missing, or one has no place.

    Chen et al., arXiv:2002.05709 and arXiv:2006.10029; github.com/google-research/simclr.
    """
    entries = read_index(Path(prefix))
    modules, names = map_variables({name: entry.shape for name, entry in entries.items()})
    for module, variables in zip(modules, names, strict=True):
        if module is not None:
            state = {key: _as_ours(read_tensor(name, entries[name])) for key, name in variables.items()}
            for key in module.state_dict().keys() - state.keys():  # num_batches_tracked, of no use at a fixed momentum
                state[key] = torch.zeros((), dtype=torch.int64, device="cpu")
            module.load_state_dict(state, assign=True)
            module.eval()
    return modules


def map_variables(shapes: Shapes) -> tuple[GoogleSimCLR, tuple[dict[str, str], ...]]:
    """Modules on the meta device that have a place for every variable, and the variable of each of their tensors.

    Args:
        shapes: TensorFlow's shapes by the variables' names.

    Returns:
        The modules, and for each a dictionary from keys of its `state_dict` to names of variables.

    Raises:
        ValueError: A variable is missing, has another shape, or has no place.
    """
    objects = sorted(name for name in shapes if name.endswith(OBJECTS))
    if objects:
        raise ValueError(
            "`prefix` must lead to a checkpoint in TensorFlow 1's format, which names its variables as in "
            f"'base_model/conv2d/kernel'; this is one of TensorFlow 2's, with {objects[0]!r}."
        )
    with torch.device("meta"), _WithoutNormal():  # names and shapes alone: what is overwritten needs no numbers
        encoder = ResNet(**_architecture(_kernels(shapes)))
        projector, scopes = _projector(shapes, encoder.feature_dim)
        classifier = _classifier(shapes)
    modules = GoogleSimCLR(encoder, projector, classifier)
    names = (_encoder_names(encoder), _projector_names(projector, scopes), _classifier_names(classifier))
    for module, variables in zip(modules, names, strict=True):
        if module is not None:
            _check(module, variables, shapes)
    _refuse_others(shapes, {name for variables in names for name in variables.values()})
    return modules, names


class _WithoutNormal(TorchFunctionMode):
    """Skips `normal_`, for which torch would import 900 modules on the meta device, 3 s, to do nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return None if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def _kernels(shapes: Shapes) -> list[tuple[int, ...]]:
    """Shapes of the encoder's convolutions, in order of creation."""
    matches = [re.fullmatch(r"base_model/conv2d(?:_(\d+))?/kernel", name) for name in shapes]
    found = {int(match[1] or 0): shapes[match[0]] for match in matches if match}
    for number in range(max(found, default=0) + 1):
        name = _numbered("base_model/conv2d", number) + "/kernel"
        if number not in found:
            raise ValueError(
                f"`prefix` must lead to a checkpoint of the SimCLR authors' code, which has {name!r}; this one has "
                f"{len(shapes)} other variables, such as {_some(sorted(shapes), 3)}."
            )
        if len(found[number]) != 4:
            raise ValueError(f"{name!r} must have four dimensions, got {found[number]}.")
    return [found[number] for number in range(len(found))]


def _architecture(kernels: list[tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of the `ResNet` that has as many convolutions, and the first few of them; all are checked later."""
    sides = [kernel[0] for kernel in kernels]
    deep = sides[:2] == [3, 3]  # after other stems comes the 1 x 1 of the first shortcut
    stem, after = (3, kernels[3:]) if deep else (1, kernels[1:])
    block = BasicBlock if sides[stem + 1 : stem + 2] == [3] else Bottleneck
    # The 3 x 3 of the first block has two streams. Basic blocks have none: with a small stem they would look as without
    # selective kernels, but the authors' code cannot run those (it pools the residual branch too, and sizes differ).
    selective = deep or (block is Bottleneck and len(after) > 2 and after[2][3] == 2 * after[2][2])
    per_block = 2 if block is BasicBlock else 5 if selective else 3
    counts = {stem + 4 + per_block * sum(depths): depth for depth, (kind, depths) in DEPTHS.items() if kind is block}
    if len(kernels) not in counts:
        fitting = ", ".join(f"{count} (ResNet-{depth})" for count, depth in counts.items())
        raise ValueError(
            f"`prefix` must lead to a ResNet of the SimCLR authors' code, with a number of convolutions among {fitting}"
            f", got {len(kernels)}."
        )
    return {
        "depth": counts[len(kernels)],
        "width": kernels[stem - 1][3] / 64,
        "stem": "cifar" if sides[0] == 3 and not deep else "imagenet",
        "variant": "google",
        "selective_kernel": selective,
        "in_channels": kernels[0][2],
    }


def _projector(shapes: Shapes, feature_dim: int) -> tuple[ProjectionHead | None, list[str]]:
    """The head and the names of its layers: "nl_0", "nl_1" ... or, for the linear head, "l_0"."""
    scopes: list[str] = []
    while f"head_contrastive/nl_{len(scopes)}/dense/kernel" in shapes:
        scopes.append(f"head_contrastive/nl_{len(scopes)}")
    if "head_contrastive/l_0/dense/kernel" in shapes:
        scopes.append("head_contrastive/l_0")
    if not scopes:
        return None, []
    hidden, out = (_matrix(shapes, f"{scope}/dense/kernel")[1] for scope in (scopes[0], scopes[-1]))
    return ProjectionHead(feature_dim, hidden, out, layers=len(scopes)), scopes


def _classifier(shapes: Shapes) -> nn.Linear | None:
    kernel = "head_supervised/linear_layer/dense/kernel"
    return nn.Linear(*_matrix(shapes, kernel)) if kernel in shapes else None


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    if len(shapes[name]) != 2:
        raise ValueError(f"{name!r} must have two dimensions, got {shapes[name]}.")
    return shapes[name][0], shapes[name][1]


def _encoder_names(encoder: ResNet) -> dict[str, str]:
    names: dict[str, str] = {}
    convolutions = norms = 0  # numbered by themselves: selective kernels have convolutions without BatchNorm
    for key, module in _in_order_of_creation(encoder):
        if isinstance(module, nn.Conv2d):
            names[f"{key}.weight"] = _numbered("base_model/conv2d", convolutions) + "/kernel"
            convolutions += 1
        elif isinstance(module, nn.BatchNorm2d):
            scope = _numbered("base_model/batch_normalization", norms)
            names |= {f"{key}.{ours}": f"{scope}/{theirs}" for ours, theirs in NORM.items()}
            norms += 1
    return names


def _in_order_of_creation(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Submodules in our order, but for shortcuts, which the authors' code creates before the rest of the block."""
    for name, child in sorted(module.named_children(), key=lambda item: item[0] != "downsample"):
        yield prefix + name, child
        yield from _in_order_of_creation(child, f"{prefix}{name}.")


def _projector_names(projector: ProjectionHead | None, scopes: list[str]) -> dict[str, str]:
    names = {}
    for index, scope in enumerate(scopes):
        names[f"layers.{3 * index}.weight"] = f"{scope}/dense/kernel"  # Linear, BatchNorm, ReLU
        for ours, theirs in NORM.items():
            names[f"layers.{3 * index + 1}.{ours}"] = f"{scope}/batch_normalization/{theirs}"
    if scopes:
        del names[f"layers.{3 * len(scopes) - 2}.bias"]  # the output has a scale and no shift
    return names


def _classifier_names(classifier: nn.Linear | None) -> dict[str, str]:
    scope = "head_supervised/linear_layer/dense"
    return {"weight": f"{scope}/kernel", "bias": f"{scope}/bias"} if classifier is not None else {}


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _check(module: nn.Module, variables: dict[str, str], shapes: Shapes) -> None:
    state = module.state_dict()
    for key, name in variables.items():
        expected = _as_theirs(tuple(state[key].shape))
        if shapes.get(name) != expected:
            found = f"shape {shapes[name]}" if name in shapes else "nothing"
            raise ValueError(f"`prefix` must lead to shape {expected} for {name!r}, the checkpoint has {found}.")


def _refuse_others(shapes: Shapes, used: set[str]) -> None:
    kept = used | {name + slot for name in used for slot in SLOTS} | STEPS
    others = sorted(name for name in shapes if name not in kept and not name.startswith(AVERAGES))
    if others:
        raise ValueError(
            f"`prefix` must lead to variables that all have a place in a ResNet, its projection head or a linear "
            f"classifier, {len(others)} of {len(shapes)} have none: {_some(others, 20)}."
        )


def _some(names: list[str], count: int) -> str:
    return ", ".join(map(repr, names[:count])) + (f" and {len(names) - count} more" if len(names) > count else "")


def _as_theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(out, in, h, w) -> (h, w, in, out), (out, in) -> (in, out)."""
    return (*shape[2:], *reversed(shape[:2])) if len(shape) > 1 else shape


def _as_ours(tensor: Tensor) -> Tensor:
    """(h, w, in, out) -> (out, in, h, w), (in, out) -> (out, in)."""
    return (tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.t()).contiguous()
