"""Class folders of image files, the layout of ImageNet."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})  # and names that begin with a dot
# What PIL says of files that are no images or damaged, in this order: most, PNG, PPM, and sizes beyond all reason.
_BAD_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_MANY = 20_000  # files from which opening them all takes seconds, so a bar is shown


class FolderDataset(ImageDataset):
    """Image files in one folder per class: `root/<class>/.../<image>`, classes in alphabetical order.

    Images are read as RGB, one by one, and keep their sizes.

    Args:
        root: The folder of class folders.
        verify: Open every file and read its header at construction, about 0.1 ms each, so that what is no image is
            found before a run and not in the middle of it.

    Raises:
        InputError: The folder is missing or has no class folders, a class folder has no images, or a file in it is no
            image; the message names it.
    """

    def __init__(self, root: str | Path, *, verify: bool = True) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"`root` must be a folder of class folders, there is no folder {self.root}.")
        folders = sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise InputError(f"`root` must be a folder of class folders, {self.root} holds no folders.")
        self.classes, self.images = [folder.name for folder in folders], None
        self.files: list[str] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = _image_files(folder)
            self.files += found
            labels += [label] * len(found)
        self.labels = torch.tensor(labels)
        if verify:
            _verify(self.files)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def read(self, index: int) -> Tensor:
        """Image `index` as uint8 RGB, (3, h, w)."""
        return decode(self.files[index])


def decode(file: str | Path) -> Tensor:
    """One image file as uint8 RGB, (3, h, w).

    Raises:
        InputError: The file cannot be decoded as an image.
    """
    try:
        with Image.open(file) as image:
            pixels = _rgb(image)
    except _BAD_IMAGE as error:
        raise InputError(f"{file} cannot be decoded as an image: {error}.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8 instead of scaling them
        grey = np.round(np.asarray(image, dtype=np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _image_files(folder: Path) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.lower() not in _SYSTEM_FILES]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    for path in files:
        if path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"every file in a class folder must be an image, {path} has not the name of one.")
    if not files:
        raise InputError(f"every class folder must hold images, {folder} holds none.")
    return [str(path) for path in files]


def _is_image(file: str) -> bool:
    try:
        with Image.open(file):
            return True
    except _BAD_IMAGE:
        return False


def _verify(files: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        checks = zip(files, pool.map(_is_image, files, chunksize=256), strict=True)
        for file, good in tqdm(checks, total=len(files), desc="checking images", disable=len(files) < _MANY):
            if not good:
                raise InputError(f"every file in a class folder must be an image, {file} is none.")
