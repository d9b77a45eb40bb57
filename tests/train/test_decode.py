"""What image files become, kind by kind, and which are refused by name."""

import re
import struct
import zlib

import numpy as np
import pytest
import torch
from cl_train import FolderDataset, InputError
from cl_train._decode import as_rgb, decode
from PIL import Image


def a_png(width: int, height: int, rows: bytes, *, depth=8) -> bytes:
    """An RGB file by hand: PIL writes no 16 bits of three channels, and no lies."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def noise(h=32, w=32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8))


def write_bad(path, kind: str) -> None:
    """A file that cannot be read."""
    if kind == "truncated":
        noise().save(path, "JPEG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "32 bits":
        Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path, "TIFF")
    else:
        content = {
            "empty": b"",
            "web page": b"<!doctype html><html><body>404</body></html>",
            "bomb": a_png(100_000, 100_000, b""),
        }
        path.write_bytes(content[kind])


BAD = {
    "truncated": "image file is truncated",
    "empty": "its format is none that Pillow knows.",
    "web page": "its format is none that Pillow knows.",
    "bomb": "Image size (10000000000 pixels) exceeds limit",
    "32 bits": "its pixels (mode F) have 32 bits and no known range.",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_whole_image_is_refused_by_name_and_reason(tmp_path, kind):
    file = tmp_path / "x.jpg"
    write_bad(file, kind)
    with pytest.raises(InputError, match=f"^{re.escape(f'{file} cannot be decoded as an image: {BAD[kind]}')}"):
        FolderDataset(tmp_path, labelled=False, verify=False).read(0)


def test_bytes_are_read_as_a_file_is(tmp_path):
    noise().save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    assert torch.equal(decode(content, name="row 3"), decode(tmp_path / "x.png", name="x.png"))


def test_bytes_that_are_no_image_are_refused_without_an_address_in_memory():
    with pytest.raises(
        InputError, match=r"^row 3 cannot be decoded as an image: its format is none that Pillow knows.$"
    ):
        decode(b"<html>", name="row 3")


def test_cmyk_jpeg_is_read_in_its_colours(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as stored:
        assert stored.mode == "CMYK"
    colours = decode(tmp_path / "x.jpg", name="x").int() - torch.tensor([200, 30, 60])[:, None, None]
    assert colours.abs().max() <= 4


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_of_grey_keep_their_shades(tmp_path, suffix):
    shades = np.array([[0, 20000, 40000, 65535]], dtype=np.uint16)
    if suffix == "pgm":
        (tmp_path / "x.pgm").write_bytes(b"P5 4 1 65535\n" + shades.astype(">u2").tobytes())
    else:
        Image.fromarray(shades).save(tmp_path / f"x.{suffix}")
    found = decode(tmp_path / f"x.{suffix}", name="x")
    assert found.shape == (3, 1, 4)
    for channel in found:
        assert channel[0].tolist() == [0, 78, 156, 255]


def test_sixteen_bits_of_colour_keep_their_shades(tmp_path):
    shades = np.array([0, 20000, 65535], dtype=">u2")
    (tmp_path / "x.png").write_bytes(a_png(1, 1, b"\0" + shades.tobytes(), depth=16))
    assert decode(tmp_path / "x.png", name="x")[:, 0, 0].tolist() == [0, 78, 255]


def test_a_palette_with_transparency_is_read_in_its_colours(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([9, 8, 7, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "x.png", transparency=0)
    assert decode(tmp_path / "x.png", name="x")[:, 0].T.tolist() == [[9, 8, 7], [10, 20, 30]]


def test_one_pixel_is_an_image(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", name="x").tolist() == [[[1]], [[2]], [[3]]]


def test_orientation_stays_as_it_is_stored(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as stored:
        assert stored.getexif()[0x0112] == 6
    assert torch.equal(decode(tmp_path / "x.png", name="x"), torch.from_numpy(pixels).permute(2, 0, 1))


def test_whole_numbers_of_32_bits_in_memory_are_refused():
    with pytest.raises(ValueError, match=r"^its pixels \(mode I\) have 32 bits and no known range$"):
        as_rgb(Image.fromarray(np.ones((2, 2), dtype=np.int32)))
