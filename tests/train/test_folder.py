"""FolderDataset: which files are images of which class, what it reads, and what it refuses."""

import re
import struct
import zlib

import numpy as np
import pytest
import torch
from cl_augment import EvalTransform
from cl_train import FolderDataset, InputError
from cl_train._loader import batches
from PIL import Image

few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, colour=RED, size=(4, 3), mode="RGB", **options) -> None:
    """An image of one colour, `size` being (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.fixture
def root(tmp_path):
    save(tmp_path / "data" / "cat" / "a.png", RED)
    save(tmp_path / "data" / "dog" / "a.png", GREEN)
    return tmp_path / "data"


# What is read


def test_classes_are_the_folders_in_alphabetical_order(tmp_path):
    for name in ("dog", "Elk", "ant", "10", "9"):
        save(tmp_path / name / "x.png")
    assert FolderDataset(tmp_path).classes == ["10", "9", "Elk", "ant", "dog"]


def test_labels_are_the_places_of_the_classes(root):
    save(root / "cat" / "b.png")
    data = FolderDataset(root)
    assert data.labels.tolist() == [0, 0, 1]
    assert data.labels.dtype == torch.int64


def test_files_of_a_class_are_in_the_order_of_their_names(tmp_path):
    for name, colour in {"c.png": BLUE, "a.png": RED, "b.png": GREEN}.items():
        save(tmp_path / "one" / name, colour)
    data = FolderDataset(tmp_path)
    assert [tuple(data.read(i)[:, 0, 0].tolist()) for i in range(3)] == [RED, GREEN, BLUE]


def test_nested_folders_belong_to_the_class_above_them(root):
    save(root / "dog" / "puppies" / "small" / "x.png", BLUE)
    data = FolderDataset(root)
    assert data.classes == ["cat", "dog"]
    assert data.labels.tolist() == [0, 1, 1]


def test_images_are_not_in_memory(root):
    assert FolderDataset(root).images is None


def test_the_length_is_the_number_of_files(root):
    save(root / "cat" / "b.png")
    assert len(FolderDataset(root)) == 3


@pytest.mark.parametrize("name", [".DS_Store", "._a.png", "Thumbs.db", "desktop.ini"])
def test_files_of_the_system_are_ignored(root, name):
    (root / "cat" / name).write_text("no image")
    assert len(FolderDataset(root)) == 2


def test_hidden_folders_are_no_classes(root):
    (root / ".cache").mkdir()
    assert FolderDataset(root).classes == ["cat", "dog"]


def test_hidden_folders_in_a_class_folder_are_ignored(root):
    save(root / "cat" / ".ipynb_checkpoints" / "a-checkpoint.png")
    assert len(FolderDataset(root)) == 2


def test_files_beside_the_class_folders_are_ignored(root):
    (root / "README.txt").write_text("no image")
    save(root / "z.png")
    assert len(FolderDataset(root)) == 2


def test_suffixes_may_be_in_capitals(root):
    save(root / "cat" / "B.PNG")
    assert len(FolderDataset(root)) == 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_png_is_read_as_its_colours_in_rgb(tmp_path, mode):
    save(tmp_path / "one" / "x.png", (255, 0, 51), mode=mode)
    image = FolderDataset(tmp_path).read(0)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 3, 4)
    assert image.reshape(3, -1).unique(dim=1).flatten().tolist() == [255, 0, 51]


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_png_is_read_with_three_equal_channels(tmp_path, mode):
    (tmp_path / "one").mkdir()
    grey = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "one" / "x.png")
    image = FolderDataset(tmp_path).read(0)
    assert torch.equal(image, torch.from_numpy(grey).expand(3, 2, 3))


def test_sixteen_bit_grey_png_keeps_its_shades(tmp_path):
    (tmp_path / "one").mkdir()
    Image.fromarray(np.array([[0, 20000, 40000, 65535]], dtype=np.uint16)).save(tmp_path / "one" / "x.png")
    shades = FolderDataset(tmp_path).read(0)[0, 0].tolist()
    assert shades == pytest.approx([0, 20000 / 257, 40000 / 257, 255], abs=1)


def test_palette_png_with_shades_of_transparency_is_read_without_a_warning(tmp_path):
    (tmp_path / "one").mkdir()
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "one" / "x.png", transparency=bytes([0, 128]))
    assert FolderDataset(tmp_path).read(0)[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_read_as_rgb(tmp_path, mode):
    save(tmp_path / "one" / "x.jpg", (200, 200, 200), mode=mode)
    image = FolderDataset(tmp_path).read(0)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 3, 4)
    assert (image.int() - 200).abs().max() <= 2


def test_images_keep_their_sizes(tmp_path):
    save(tmp_path / "one" / "a.png", size=(5, 2))
    save(tmp_path / "one" / "b.png", size=(1, 7))
    data = FolderDataset(tmp_path)
    assert [tuple(data.read(i).shape) for i in range(2)] == [(3, 2, 5), (3, 7, 1)]


def test_pixels_are_those_of_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one" / "x.png")
    assert torch.equal(FolderDataset(tmp_path).read(0), torch.from_numpy(pixels).permute(2, 0, 1))


# What is refused


def test_a_missing_root_is_refused(tmp_path):
    with refused(f"`root` must be a folder of class folders, there is no folder {tmp_path / 'no'}."):
        FolderDataset(tmp_path / "no")


def test_a_root_that_is_a_file_is_refused(tmp_path):
    save(tmp_path / "x.png")
    with refused(f"`root` must be a folder of class folders, there is no folder {tmp_path / 'x.png'}."):
        FolderDataset(tmp_path / "x.png")


def test_an_empty_root_is_refused(tmp_path):
    with refused(
        f"`root` must be a folder of class folders, {tmp_path} holds no folders; "
        "`labelled=False` takes images without classes."
    ):
        FolderDataset(tmp_path)


def test_a_root_with_images_and_no_class_folders_is_refused(tmp_path):
    save(tmp_path / "x.png")
    with refused(
        f"`root` must be a folder of class folders, {tmp_path} holds no folders; "
        "`labelled=False` takes images without classes."
    ):
        FolderDataset(tmp_path)


def test_a_class_folder_without_images_is_refused(root):
    (root / "emu").mkdir()
    with refused(f"every class folder must hold images, {root / 'emu'} holds none."):
        FolderDataset(root)


def test_a_class_folder_with_nothing_but_files_of_the_system_is_refused(root):
    (root / "emu").mkdir()
    (root / "emu" / ".DS_Store").touch()
    with refused(f"every class folder must hold images, {root / 'emu'} holds none."):
        FolderDataset(root)


@pytest.mark.parametrize("verify", [True, False])
def test_a_text_file_in_a_class_folder_is_refused(root, verify):
    (root / "cat" / "notes.txt").write_text("no image")
    with refused(
        f"every file in a class folder must be an image, {root / 'cat' / 'notes.txt'} has not the name of one."
    ):
        FolderDataset(root, verify=verify)


def test_a_web_page_saved_as_jpg_is_refused(root):
    (root / "dog" / "b.jpg").write_text("<!doctype html><html><body>404</body></html>")
    with refused(f"every file in a class folder must be an image, {root / 'dog' / 'b.jpg'} is none."):
        FolderDataset(root)


@pytest.mark.parametrize("suffix", ["png", "jpg", "ppm", "tif"])
def test_an_empty_file_is_refused(root, suffix):
    (root / "dog" / f"b.{suffix}").touch()
    with refused(f"every file in a class folder must be an image, {root / 'dog' / f'b.{suffix}'} is none."):
        FolderDataset(root)


@pytest.mark.parametrize(
    "suffix",
    [
        "png",
        "jpg",
        "bmp",
        "webp",
        "gif",
        "ppm",
    ],
)
def test_a_file_that_ends_in_its_header_is_refused(root, suffix):
    file = root / "dog" / f"b.{suffix}"
    save(file)
    file.write_bytes(file.read_bytes()[:5])
    with refused(f"every file in a class folder must be an image, {file} is none."):
        FolderDataset(root)


def a_png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_file_that_claims_to_be_absurdly_large_is_refused(root):
    (root / "dog" / "b.png").write_bytes(a_png_that_claims(100_000, 100_000))
    with pytest.raises(InputError, match=re.escape(str(root / "dog" / "b.png"))):
        FolderDataset(root)


def test_the_first_bad_file_is_the_one_named(root):
    for name in ("m.png", "b.png", "z.png"):
        (root / "dog" / name).touch()
    with pytest.raises(InputError, match=re.escape(str(root / "dog" / "b.png"))):
        FolderDataset(root)


def test_without_verify_no_file_is_opened(root, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Image, "open", fail)
    assert len(FolderDataset(root, verify=False)) == 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp"])
def test_a_truncated_file_is_refused_when_it_is_read(tmp_path, suffix):
    file = tmp_path / "one" / f"x.{suffix}"
    file.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    file.write_bytes(file.read_bytes()[:-300])
    data = FolderDataset(tmp_path, verify=False)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))} cannot be decoded as an image: .+[.]$"):
        data.read(0)


def test_a_file_that_vanished_is_refused_when_it_is_read(root):
    data = FolderDataset(root)
    (root / "cat" / "a.png").unlink()
    with pytest.raises(InputError, match=f"^{re.escape(str(root / 'cat' / 'a.png'))} cannot be decoded as an image: "):
        data.read(0)


@few_cores
@forking
@pytest.mark.parametrize(
    "workers",
    [
        0,
        1,
    ],
)
def test_a_file_that_cannot_be_read_in_the_loop_is_named_in_one_line(root, workers):
    data = FolderDataset(root)
    (root / "cat" / "a.png").write_bytes(b"broken")
    numbers = torch.tensor([0, 1])
    source = batches(data, [(numbers, numbers)], cut=EvalTransform(8), workers=workers, device=torch.device("cpu"))
    with pytest.raises(InputError, match=f"^{re.escape(str(root / 'cat' / 'a.png'))} cannot be decoded") as caught:
        next(source)
    assert "\n" not in str(caught.value)
