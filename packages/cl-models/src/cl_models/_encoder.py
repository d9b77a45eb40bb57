"""Any network as an encoder: without its classifier, and with the width of its features."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
PASSING = (*DROPOUTS, nn.Identity, nn.Flatten, nn.Unflatten)  # outside training they return what they get
NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of every dimension, synchronised or not
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
PROBABILITIES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid)  # end a classifier, not an encoder
# What a forward raises at images of a shape it is not made for, or at an Identity in place of a layer (which has no
# `weight`). Anything else is a fault of the module's own and keeps its traceback.
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError)
FEATURES = "`module` must turn images into features (2, d), floating point"


def as_encoder(
    module: nn.Module, *, head: str | None = "auto", image_size: int = 224, in_channels: int | None = None
) -> nn.Module:
    """Copy of a network without its classification head: images in, features out.

    The head is found by running the copy once on two made-up images: it is the `nn.Linear` whose output is the
    network's output, and goes together with a dropout right before or after it. A network that ends in a pooling, an
    activation, a norm or another layer without parameters has no head and is kept whole; so is one whose classifier
    is a convolution before the last pooling (SqueezeNet), unless `head` names it. What is neither is refused: `head`
    has to say it. The copy, without the head, is run again, and must give one row of features per image.

        encoder = as_encoder(torchvision.models.convnext_tiny())
        projector = ProjectionHead(encoder.feature_dim, encoder.feature_dim, 128)

    Nothing else changes: class, names in the state dict, weights, `requires_grad`, each submodule's mode, BatchNorm
    statistics, the random state. Dropout that the network applies as a function, not as a module, stays.

    Args:
        module: Network of torchvision's, timm's or yours; it stays as it is. One that has an int `feature_dim` > 0, as
            our ResNets have, is an encoder already and with `head="auto"` is returned itself, neither copied nor run.
        head: "auto"; the dotted name of the submodule that becomes `nn.Identity`; or None to keep all of it.
        image_size: Side in pixels, >= 1, of the images to run it on. It matters for networks of one size, such as ViTs.
        in_channels: Channels of these images, >= 1; None: what the first `nn.Conv2d` takes.

    Returns:
        Module with `feature_dim`, the width of its output: images (n, c, h, w) -> features (n, feature_dim).

    Raises:
        ValueError: An argument is out of its range, the head cannot be told, or the network without it cannot be run on
            (2, in_channels, image_size, image_size) or does not give (2, d) there, also while it trains (an Inception
            with auxiliary classifiers gives a tuple then).
    """
    width = getattr(module, "feature_dim", None)
    if head == "auto" and isinstance(width, int) and width > 0:
        return module
    encoder = copy.deepcopy(module)
    images = _images(encoder, image_size=image_size, in_channels=in_channels)
    gone = _find_head(encoder, images) if head == "auto" else _named(encoder, head)
    names = {name: layer.training for layer in gone for name in _names(encoder, layer)}
    for name, mode in names.items():
        encoder.set_submodule(name, nn.Identity().train(mode))
    width = _width(_run(encoder, images, without=list(names)))
    _width(_run(encoder, images, without=list(names), training=True), where=" in training")
    encoder.feature_dim = width  # type: ignore[assignment]
    return encoder


def _images(encoder: nn.Module, *, image_size: int, in_channels: int | None) -> Tensor:
    """Two images for the module's device and dtype, drawn without random numbers: the caller's stay where they are."""
    if image_size < 1:
        raise ValueError(f"`image_size` must be at least 1, got {image_size}.")
    if in_channels is None:
        in_channels = next((part.in_channels for part in encoder.modules() if isinstance(part, nn.Conv2d)), None)
        if in_channels is None:
            raise ValueError("`in_channels` must be given for a module without nn.Conv2d, got None.")
    elif in_channels < 1:
        raise ValueError(f"`in_channels` must be at least 1, got {in_channels}.")
    like = next((tensor for tensor in encoder.parameters() if tensor.is_floating_point()), torch.empty(0))
    count = 2 * in_channels * image_size**2
    ramp = torch.linspace(0, 1, count, device=like.device).to(like.dtype)
    return ramp.reshape(2, in_channels, image_size, image_size)


def _run(encoder: nn.Module, images: Tensor, *, without: Sequence[str] = (), training: bool = False) -> Any:
    """Output of a forward that leaves no trace: no gradient, no statistics, no random numbers, every mode put back.

    With `training` only the module itself is told that it trains, its parts are not: it is the outermost that adds
    auxiliary outputs, and BatchNorms would move.
    """
    modes = [(part, part.training) for part in encoder.modules()]
    encoder.eval()
    encoder.training = training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            return encoder(images)
    except FORWARD_ERRORS as error:
        raise ValueError(
            f"`module`{' without ' if without else ''}{', '.join(without)} must take images of shape "
            f"{tuple(images.shape)}, which come of `image_size` and `in_channels`; {type(encoder).__name__} raised "
            f"{error!r}."
        ) from error
    finally:
        for part, mode in modes:
            part.training = mode


class _Call(NamedTuple):
    """One forward of a layer: its marks are equal where tensors are views of the same numbers at the same time."""

    layer: nn.Module
    given: tuple[int, int] | None
    made: tuple[int, int]


def _mark(tensor: Tensor) -> tuple[int, int]:
    # the version tells `relu(fc(x), inplace=True)` from `fc(x)`, which share their memory
    return tensor.untyped_storage()._cdata, tensor._version


def _watch(encoder: nn.Module, images: Tensor) -> tuple[list[_Call], Any]:
    """The layers' forwards in their order, and the output."""
    calls: list[_Call] = []
    held: list[Tensor] = []  # or memory would be given to a second tensor

    def note(layer: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        if isinstance(made, Tensor):
            given = args[0] if args and isinstance(args[0], Tensor) else None
            held.extend([made] if given is None else [made, given])
            calls.append(_Call(layer, None if given is None else _mark(given), _mark(made)))

    handles = [
        layer.register_forward_hook(note)
        for layer in encoder.modules()
        # a Linear or a norm may have parts, such as a parametrization or an activation
        if isinstance(layer, (nn.Linear, *NORMS)) or not list(layer.children())
    ]
    try:
        return calls, _run(encoder, images)
    finally:
        for handle in handles:
            handle.remove()


def _find_head(encoder: nn.Module, images: Tensor) -> list[nn.Module]:
    """The layers that belong to the head: none, or a Linear and the dropouts at its sides."""
    calls, output = _watch(encoder, images)
    if not isinstance(output, Tensor):
        return []  # refused with all else that is no features
    made = [call for call in calls if call.made == _mark(output) and not isinstance(call.layer, PASSING)]
    if not made:
        raise _unclear(encoder, "no single layer makes its output")
    last = made[0]  # the others passed it on
    bare = next(last.layer.parameters(), None) is None and not isinstance(last.layer, PROBABILITIES)
    if bare or isinstance(last.layer, NORMS):
        return []
    runs = [call.layer for call in calls]
    what = f"{type(last.layer).__name__} {_names(encoder, last.layer)[0]!r}"
    if last.layer is encoder:
        raise _unclear(encoder, "it is a single layer")
    if not isinstance(last.layer, nn.Linear):
        raise _unclear(encoder, f"{what} makes its output")
    if runs.count(last.layer) > 1:
        raise _unclear(encoder, f"{what} makes its output, but runs {runs.count(last.layer)} times")
    if output.shape[-1] != last.layer.out_features:
        raise _unclear(encoder, f"its output is a part of what {what} makes")
    dropouts = [
        call.layer
        for call in calls
        if isinstance(call.layer, DROPOUTS) and call.made in (last.given, last.made) and runs.count(call.layer) == 1
    ]
    return [last.layer, *dropouts]


def _unclear(encoder: nn.Module, found: str) -> ValueError:
    return ValueError(
        f"`head` must be the dotted name of the classifier of {type(encoder).__name__}, or None to keep all of it, "
        f"got 'auto': {found}."
    )


def _named(encoder: nn.Module, head: str | None) -> list[nn.Module]:
    if head is None:
        return []
    layers = dict(encoder.named_modules(remove_duplicate=False))
    if not head or head not in layers:
        children = ", ".join(name for name, _ in encoder.named_children())
        raise ValueError(
            f"`head` must be the dotted name of a submodule of {type(encoder).__name__}, got {head!r}; "
            f"its children: {children or 'none'}."
        )
    return [layers[head]]


def _names(encoder: nn.Module, layer: nn.Module) -> list[str]:
    """Every name of a submodule; one that is shared has several."""
    return [name for name, part in encoder.named_modules(remove_duplicate=False) if part is layer]


def _width(features: Any, *, where: str = "") -> int:
    """Width d of features (2, d); a ValueError says what they are instead and what to do."""
    if not isinstance(features, Tensor):
        raise ValueError(
            f"{FEATURES}, got a {type(features).__name__}{where}: build it without auxiliary outputs, or return one "
            "tensor from a module of your own around it."
        )
    if features.ndim == 2 and len(features) == 2 and features.is_floating_point():
        return features.shape[1]
    advice = {
        3: "a token or the mean of all, taken in a module of your own around it, makes tokens (n, t, d) features",
        4: "nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten()) makes maps (n, d, h, w) features",
    }.get(features.ndim, "one row of numbers per image is what is needed")
    raise ValueError(f"{FEATURES}, got {features.dtype} of shape {tuple(features.shape)}{where}: {advice}.")
