"""What is to be seen in a picture."""

import numpy as np
from PIL import Image


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB")).astype(int)


def shows(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Whether a colour is there, in more than a few stray pixels."""
    return (np.abs(picture - np.array(colour)).max(-1) <= 2).sum() > 100
