"""The image files in a folder, in an order that does not depend on the machine."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from cl_train._decode import BAD_IMAGE
from cl_train._errors import InputError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})  # and names that begin with a dot
_PART = 256  # files that a thread opens at a time
_MANY = 20_000  # files from which opening them all takes seconds, so a bar is shown


def find_images(folder: Path, *, role: str, seen: set[tuple[int, int]]) -> list[str]:
    """Paths of all files in a folder, at any depth, links followed, in the order of their names.

    Args:
        folder: Where to look.
        role: What it is, for errors.
        seen: Folders that have been looked at, to which those here are added.

    Raises:
        InputError: A file has not the name of an image, or a folder cannot be read or comes again by a link: its images
            would be negatives of themselves.
    """
    found: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        _check_new(parent, seen)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower() not in _SYSTEM_FILES:
                found.append(os.path.join(parent, name))
    found.sort(key=lambda file: file.split(os.sep))
    for file in found:
        if os.path.splitext(file)[1].lower() not in _SUFFIXES:
            raise InputError(f"every file in {role} must be an image, {file} has not the name of one.")
    return found


def check_headers(files: list[str], *, role: str) -> None:
    """Open every file, and raise for the first that has not the header of an image."""
    parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]  # a future per file is 1 GB
    with (
        ThreadPoolExecutor(8) as pool,
        tqdm(total=len(files), desc="checking images", disable=len(files) < _MANY) as bar,
    ):
        for part, bad in zip(parts, pool.map(_first_bad, parts), strict=True):
            if bad is not None:
                raise InputError(f"every file in {role} must be an image, {bad} is none.")
            bar.update(len(part))


def _refuse(error: OSError) -> None:
    raise InputError(f"every folder of images must be readable, {error.filename}: {error.strerror}.") from error


def _check_new(folder: str, seen: set[tuple[int, int]]) -> None:
    status = os.stat(folder)
    place = status.st_dev, status.st_ino
    if place in seen:
        raise InputError(f"every image must be there once, {folder} is a link to a folder that is among them already.")
    seen.add(place)


def _first_bad(files: list[str]) -> str | None:
    for file in files:
        try:
            with Image.open(file):
                pass
        except BAD_IMAGE:
            return file
    return None
