"""Writing PNG files, which Kornia can only since 0.9."""

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor


def write_png(path: Path, image: Tensor) -> None:
    """Write an RGB image.

    Args:
        path: Where to.
        image: uint8, shape (3, h, w), on the CPU.

    Raises:
        OSError: The file cannot be written.
    """
    _, height, width = image.shape
    rows = image.permute(1, 2, 0).reshape(height, 3 * width)
    change = rows.clone()
    change[:, 3:] -= rows[:, :-3]  # PNG's filter 1, the difference to the pixel on the left modulo 256
    filtered = torch.cat([torch.ones(height, 1, dtype=torch.uint8), change], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a sample, RGB, not interlaced
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.numpy().tobytes())), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in chunks:
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
