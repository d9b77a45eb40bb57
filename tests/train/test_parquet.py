"""ParquetDataset: encoded images in rows, with and without Hugging Face's metadata."""

import io
import json
import pickle
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from cl_train import InputError, ParquetDataset, load_cifar10
from PIL import Image
from pyarrow import parquet


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def pixels(n=5, *, side=4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def structures(images) -> pa.Array:
    """As Hugging Face keeps images: their bytes, and a path."""
    return pa.array([{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)])


def write(path, columns: dict, *, classes: dict | None = None, **options):
    table = pa.table(columns)
    if classes is not None:
        features = {name: {"names": names, "_type": "ClassLabel"} for name, names in classes.items()}
        features |= {"img": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, **options)
    return path


@pytest.fixture
def file(tmp_path):
    columns = {"img": structures(map(png, pixels())), "label": [1, 0, 2, 1, 0]}
    return write(tmp_path / "x.parquet", columns, classes={"label": ["cat", "dog", "elk"]}, row_group_size=2)


def test_images_are_the_pixels_of_their_rows(file):
    data = ParquetDataset(file)
    for row, image in enumerate(pixels()):
        assert torch.equal(data.read(row), torch.from_numpy(image).permute(2, 0, 1))


def test_labels_and_names_of_classes_are_those_of_the_metadata(file):
    data = ParquetDataset(file)
    assert (data.labels.tolist(), data.classes) == ([1, 0, 2, 1, 0], ["cat", "dog", "elk"])
    assert data.labels.dtype == torch.int64
    assert (data.images, len(data)) == (None, 5)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_one_of_images(tmp_path, kind):
    write(tmp_path / "x.parquet", {"jpg": pa.array(map(png, pixels(2)), kind), "n": [1, 2], "text": ["a", "b"]})
    data = ParquetDataset(tmp_path / "x.parquet")
    assert torch.equal(data.read(1), torch.from_numpy(pixels(2)[1]).permute(2, 0, 1))


def test_without_metadata_there_are_no_labels_unless_they_are_named(tmp_path):
    file = write(tmp_path / "x.parquet", {"img": structures(map(png, pixels(2))), "label": [0, 3]})
    assert ParquetDataset(file).labels is None
    named = ParquetDataset(file, label="label")
    assert (named.labels.tolist(), named.classes) == ([0, 3], ["0", "1", "2", "3"])


def test_files_follow_each_other(tmp_path):
    parts = {tmp_path / "b.parquet": range(2), tmp_path / "a.parquet": range(2, 5)}
    for file, rows in parts.items():
        write(file, {"img": structures(png(pixels()[row]) for row in rows), "y": list(rows)})
    first, second = parts
    data = ParquetDataset([first, second], label="y")
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    places = [f"row 0 of {first}", f"row 1 of {first}", f"row 0 of {second}", f"row 2 of {second}"]
    assert [data.name(i) for i in (0, 1, 2, 4)] == places
    assert torch.equal(data.read(4), torch.from_numpy(pixels()[4]).permute(2, 0, 1))


def test_files_with_other_columns_are_refused(file, tmp_path):
    other = write(tmp_path / "y.parquet", {"img": structures([png(pixels()[0])]), "y": [0]})
    with refused(f"`files` must have the same columns, {other} has another or no 'label'."):
        ParquetDataset([file, other])


def test_a_pickled_data_set_takes_no_images_along(tmp_path):
    data = ParquetDataset(write(tmp_path / "x.parquet", {"img": structures(map(png, pixels(side=32)))}))
    packed = pickle.dumps(data)
    assert len(packed) < 1000  # an image has 3000
    assert torch.equal(pickle.loads(packed).read(3), data.read(3))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"<html>", "its format is none that Pillow knows."), (None, "it has no bytes.")]
)
def test_a_row_that_is_no_image_is_refused_by_its_number(tmp_path, content, reason):
    file = write(tmp_path / "x.parquet", {"img": structures([png(pixels()[0]), content])})
    with refused(f"row 1 of {file} cannot be decoded as an image: {reason}"):
        ParquetDataset(file).read(1)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"^`files` must be Parquet files, {re.escape(str(tmp_path))}/no.* is none: "):
        ParquetDataset(tmp_path / "no.parquet")


def test_a_file_that_is_not_whole_is_refused(file):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=f"^`files` must be Parquet files, {re.escape(str(file))} is none: "):
        ParquetDataset(file)


def test_a_file_with_damaged_pages_is_refused(file):
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(100) + content[104:])
    with pytest.raises(InputError, match=f"^`files` must be whole, {re.escape(str(file))} cannot be read: "):
        ParquetDataset(file)


def test_no_files_are_refused():
    with refused("`files` must name at least one Parquet file, got none."):
        ParquetDataset([])


def test_no_rows_are_refused(tmp_path):
    file = write(tmp_path / "x.parquet", {"img": pa.array([], pa.binary())})
    with refused(f"`files` must hold images, {file} hold none."):
        ParquetDataset(file)


def test_several_columns_of_bytes_have_to_be_told_apart(tmp_path):
    file = write(tmp_path / "x.parquet", {"a": [b""], "b": [png(pixels()[0])]})
    with refused(f"`image` must be named unless one column has bytes, {file} has ['a', 'b']."):
        ParquetDataset(file)
    assert ParquetDataset(file, image="b").read(0).shape == (3, 4, 4)


def test_a_file_without_a_column_of_bytes_is_refused(tmp_path):
    file = write(tmp_path / "x.parquet", {"a": [1]})
    with refused(f"`image` must be named unless one column has bytes, {file} has none."):
        ParquetDataset(file)


def test_a_column_of_images_that_is_none_is_refused(file):
    with refused(f"`image` must be a column of bytes, one of ['img'] in {file}, got 'label'."):
        ParquetDataset(file, image="label")


def test_a_column_of_labels_that_is_none_is_refused(file):
    with refused(f"`label` must be a column of integers, one of ['label'] in {file}, got 'img'."):
        ParquetDataset(file, label="img")


def test_several_columns_of_labels_have_to_be_told_apart(tmp_path):
    columns = {"img": structures([png(pixels()[0])]), "fine": [3], "coarse": [0]}
    file = write(tmp_path / "x.parquet", columns, classes={"fine": list("abcd"), "coarse": ["e"]})
    with refused(f"`label` must be named, {file} has several columns of labels: ['fine', 'coarse']."):
        ParquetDataset(file)
    assert ParquetDataset(file, label="coarse").classes == ["e"]


def test_a_row_without_a_label_is_refused(tmp_path):
    file = write(tmp_path / "x.parquet", {"img": structures(map(png, pixels(3))), "y": [0, None, 1]})
    with refused(f"`label` must be known for every image, 1 rows of {file} have none."):
        ParquetDataset(file, label="y")


# CIFAR-10 in Hugging Face's layout


def test_cifar10_is_read_from_parquet(tmp_path):
    images = pixels(6, side=32)
    for part, rows in {"train": slice(0, 4), "test": slice(4, 6)}.items():
        columns = {"img": structures(map(png, images[rows])), "label": list(range(6))[rows]}
        write(tmp_path / f"{part}.parquet", columns, classes={"label": list("abcdefghij")})
    train, test = load_cifar10(tmp_path)
    assert torch.equal(torch.cat([train.images, test.images]), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert train.classes == test.classes == list("abcdefghij")
