"""What a stage has drawn for an image, in words short enough to stand under a picture of it."""

from torch import Tensor

from cl_augment._blur import GaussianBlur
from cl_augment._crop import RandomResizedCropFlip
from cl_augment._grey import RandomGrayscale
from cl_augment._jitter import ColorJitter
from cl_augment._stage import Params, Stage

_MOST_LINES = 5
_OPERATIONS = "BCSH"  # brightness, contrast, saturation, hue, as ColorJitter numbers them
_SAYS_NOTHING = ("batch_prob", "forward_input_shape", "keys")


def applies(params: Params) -> bool:
    """Whether a stage, by what it drew for one image (rows of one), changes that image."""
    return "batch_prob" not in params or bool(params["batch_prob"].item())


def caption(stage: Stage, params: Params) -> list[str]:
    """Lines that say what a stage does to an image.

    Args:
        stage: Any stage.
        params: What it drew for that one image: tensors of one row, as `draw` returns them for one key.

    Returns:
        Up to five lines, one number a line where the stage is known: the box in pixels of the image, factors, the hue
        in turns and the order by first letters, sigma in pixels of the view.
    """
    if isinstance(stage, RandomGrayscale):
        return ["grey yes" if applies(params) else "grey no"]
    if not applies(params):
        return ["not applied"]
    if isinstance(stage, RandomResizedCropFlip):
        box = [f"{edge} {params[edge].item()}" for edge in ("top", "left", "height", "width")]
        return [*box, "flip yes" if params["flip"].item() else "flip no"]
    if isinstance(stage, ColorJitter):
        factors = [f"{name} {params[name].item():.2f}" for name in ("brightness", "contrast", "saturation")]
        order = "".join(_OPERATIONS[operation] for operation in params["order"][0].tolist())
        return [*factors, f"hue {params['hue'].item():+.3f}", f"order {order}"]
    if isinstance(stage, GaussianBlur):
        return [f"sigma {params['sigma'].item():.2f}"]
    return _in_general(params) or ["applied"]


def _in_general(params: Params) -> list[str]:
    """Names in order of the alphabet, each with its first numbers."""
    lines = [f"{name} {_numbers(params[name])}" for name in sorted(params) if name not in _SAYS_NOTHING]
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} more"]


def _numbers(values: Tensor) -> str:
    first, *rest = values.flatten()[:3].tolist()
    shown = [first, *rest[:1]]
    return " ".join(f"{number:.3g}" for number in shown) + (" .." if len(rest) > 1 else "")
