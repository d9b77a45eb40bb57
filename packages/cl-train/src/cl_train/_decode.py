"""From the bytes of an image file to pixels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cl_train._errors import InputError

# What PIL says of files that are no images or damaged, in this order: most, PNG, PPM, and sizes beyond all reason.
BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode(file: str | Path | bytes, *, name: str) -> Tensor:
    """One image file as uint8 RGB, (3, h, w).

    Args:
        file: Its path or its content.
        name: What to call it in an error.

    Raises:
        InputError: The file cannot be decoded as an image.
    """
    # At full size. JPEGs can be decoded to a half or less, but at 500 x 375 px no image has both crops so large that
    # they keep 224 pixels then, and at 1000 x 750 px reading takes 5 % less: cutting and most of decoding remain.
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            return as_rgb(image)
    except UnidentifiedImageError as error:  # whose message names an object in memory, if not the file once more
        raise InputError(f"{name} cannot be decoded as an image: its format is none that Pillow knows.") from error
    except BAD_IMAGE as error:
        raise InputError(f"{name} cannot be decoded as an image: {error}.") from error


def as_rgb(image: Image.Image) -> Tensor:
    """A PIL image as uint8 RGB, (3, h, w): 16 bits are scaled, transparency is dropped, orientation is as stored.

    Raises:
        ValueError: Its pixels have no known range.
    """
    return torch.from_numpy(_pixels(image)).permute(2, 0, 1)


def _pixels(image: Image.Image) -> np.ndarray:
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen_bits:  # PIL would clip them to 8 instead of scaling them
        grey = np.round(np.asarray(image, dtype=np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have 32 bits and no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
