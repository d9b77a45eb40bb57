"""The command line of `preview`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from kornia.io import ImageLoadType, load_image
from torch import Tensor, nn

from cl_augment._images import check_images
from cl_augment._keys import sample_keys
from cl_augment._presets import BYOLAugment, LinearEvalAugment, SimCLRAugment
from cl_augment._preview import preview

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")  # what Kornia reads


def main(argv: Sequence[str] | None = None) -> int:
    """Read images, draw the picture, say where it is.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        The exit code: 0, or 2 after a line on stderr about what was wrong with the input.
    """
    options = _parser().parse_args(argv)
    try:
        files = find_images(options.paths)
        shown = files[: max(options.rows, 1)]  # what is wrong with less, `preview` says
        augment = _recipe(options.recipe, size=options.size, strength=options.strength)
        keys = sample_keys(torch.arange(len(shown)), seed=options.seed, epoch=options.epoch)
        picture = preview([_read(file) for file in shown], augment, keys=keys, rows=options.rows, path=options.out)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    height, width = picture.shape[1:]
    print(f"{options.out}: {len(shown)} of {len(files)} images, {width} x {height} pixels")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cl_augment.preview", description="Draw a picture of what an augmentation does to images."
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image file, or folder that is searched")
    parser.add_argument("--out", type=Path, default=Path("preview.png"), help="picture to write (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels (%(default)s)")
    parser.add_argument("--recipe", choices=["simclr", "byol", "linear-eval"], default="simclr", help="(%(default)s)")
    parser.add_argument("--strength", type=float, help="of SimCLR's colour jitter (1.0; the paper has 0.5 on CIFAR-10)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument("--epoch", type=int, default=0, help="another one has other draws (%(default)s)")
    parser.add_argument("--rows", type=int, default=4, help="greatest number of images, the first ones (%(default)s)")
    return parser


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths` and, sorted, the images in the folders among them.

    Raises:
        ValueError: One of them does not exist, or a folder holds no image.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
            if not inside:
                raise ValueError(f"{path} holds no image ({', '.join(_SUFFIXES)}).")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist.")
    return found


def _read(file: Path) -> Tensor:
    """RGB bytes (3, h, w)."""
    try:
        image: Tensor = load_image(file, ImageLoadType.RGB8)
        check_images(image[None])
    except (OSError, ValueError, NotImplementedError) as error:
        why = str(error).removeprefix(f"Failed to decode image '{file}': ")
        raise ValueError(f"{file} cannot be read as an image: {why}") from error
    return image


def _recipe(name: str, *, size: int, strength: float | None) -> nn.Module:
    if name == "simclr":
        return SimCLRAugment(size, strength=1.0 if strength is None else strength)
    if strength is not None:
        raise ValueError(f"`--strength` belongs to the recipe simclr, got {strength} with {name}.")
    return BYOLAugment(size) if name == "byol" else LinearEvalAugment(size)
