"""Image files that are damaged, or only unusual: the first are named or left out, the others are read as they are."""

import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tiny
import torch
from cl_train import FolderDataset, InputError
from fault_runs import Outcome
from PIL import Image

NUMBER, SIDE, BATCH = 20, 10, tiny.IMAGES // 2  # of two batches in an epoch, so that each image is met in each
COLOUR = (200, 100, 50)


def _picture() -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), COLOUR)


def _truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bomb(path: Path) -> None:
    """A PNG of a few bytes that claims to be 100,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 257 * COLOUR[0], dtype=np.uint16)).save(path, "PNG")


def _palette(path: Path) -> None:
    _picture().quantize(4).save(path, "PNG", transparency=0)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    _picture().resize((SIDE, 2 * SIDE)).save(path, "JPEG", exif=exif, quality=95)


DAMAGED: dict[str, Callable[[Path], object]] = {
    "truncated JPEG": _truncated,
    "empty": lambda path: path.write_bytes(b""),
    "web page": lambda path: path.write_bytes(b"<!doctype html><html><body>404</body></html>"),
    "1 x 1": lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"),
    "bomb": _bomb,
}
UNUSUAL: dict[str, tuple[Callable[[Path], object], tuple[int, int, int]]] = {
    "CMYK": (lambda path: _picture().convert("CMYK").save(path, "JPEG", quality=95), COLOUR),
    "16 bits": (_sixteen_bits, (COLOUR[0],) * 3),
    "palette with transparency": (_palette, COLOUR),
    "EXIF rotation": (_turned, COLOUR),
}


def images(folder: Path) -> Outcome:
    """Each kind in place of one image: a run without leave to skip, and one with."""
    root = folder / "images"
    path = Path(tiny.image_folder(root).name(NUMBER))
    data = FolderDataset(root, verify=False)
    named = skipped = read = 0
    for kind, write in DAMAGED.items():
        write(path)
        out = folder / kind
        call = partial(tiny.run, data=data, batch_size=BATCH)
        named += str(path) in _refusal(partial(call, out / "error"))
        found = call(out / "skip", max_bad_images=0.1)
        lines = (out / "skip" / "bad_images.txt").read_text().splitlines()
        told = [line.split("\t")[1] for line in lines]
        skipped += found.skipped_images == tiny.EPOCHS and told == [str(path)] * tiny.EPOCHS
    for kind, (make, colour) in UNUSUAL.items():
        make(path)
        pixels, expected = data.read(NUMBER).float(), torch.tensor(colour).view(3, 1, 1)
        right = bool((pixels - expected).abs().max() < 8) and pixels.shape[1:] in ((SIDE, SIDE), (2 * SIDE, SIDE))
        read += right and tiny.run(folder / kind, data=data, batch_size=BATCH).steps == 2 * tiny.EPOCHS
    bad, odd = len(DAMAGED), len(UNUSUAL)
    text = (
        f"damaged: {named} of {bad} named, {skipped} of {bad} left out and counted exactly where allowed; "
        f"unusual: {read} of {odd} read in their colours"
    )
    return Outcome(text, (named, skipped, read) == (bad, bad, odd))


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except InputError as error:
        return str(error)
    return ""
