"""Parquet files with an encoded image in each row, as Hugging Face keeps data sets."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._decode import decode
from cl_train._errors import InputError
from cl_train._labels import check_labels

if TYPE_CHECKING:
    import pyarrow


class ParquetDataset(ImageDataset):
    """Images that are kept as JPEG, PNG or the like in the rows of Parquet files.

    Needs pyarrow (`cl-train[parquet]`). The encoded images are held in memory, once for a process and its forked
    workers, and decoded as they are read, as RGB. For more than memory holds, let `datasets` map them from the disk
    (see `WrappedDataset`); small ones are faster decoded (see `in_memory`).

    Args:
        files: Parquet files with the same columns, in the order of the images.
        image: Column of the images: bytes, or a structure with a field `bytes`. By default the only one of that kind.
        label: Column of the labels, integers. By default the only one that Hugging Face's metadata call a class label;
            without one there are no labels.

    Raises:
        InputError: A file is missing or no Parquet file, or a column is missing, ambiguous or of another kind.
    """

    def __init__(
        self, files: str | Path | Sequence[str | Path], *, image: str | None = None, label: str | None = None
    ) -> None:
        self.files = [str(file) for file in ([files] if isinstance(files, str | Path) else files)]
        if not self.files:
            raise InputError("`files` must name at least one Parquet file, got none.")
        schemas = [_schema(file) for file in self.files]
        self.image = _image_column(schemas[0], image, file=self.files[0])
        names = _class_labels(schemas[0])
        label = _label_column(schemas[0], label, names, file=self.files[0])
        for file, schema in zip(self.files, schemas, strict=True):
            for column in filter(None, [self.image, label]):
                if column not in schema.names or schema.field(column).type != schemas[0].field(column).type:
                    raise InputError(f"`files` must have the same columns, {file} has another or no {column!r}.")
        self._open()
        self.images, self.labels, self.classes = None, None, None
        if len(self) == 0:
            raise InputError(f"`files` must hold images, {', '.join(self.files)} hold none.")
        if label is not None:
            self.labels, self.classes = check_labels(_numbers(self.files, label), names.get(label), n=len(self))

    def __len__(self) -> int:
        """Number of images."""
        return self._ends[-1]

    def read(self, index: int) -> Tensor:
        """Image `index` as uint8 RGB, (3, h, w)."""
        file, row = self._place(index)
        content = self._encoded[file][row].as_py()
        if content is None:
            raise InputError(f"{self.name(index)} cannot be decoded as an image: it has no bytes.")
        return decode(content, name=self.name(index))

    def name(self, index: int) -> str:
        """Row and file of image `index`."""
        file, row = self._place(index)
        return f"row {row} of {self.files[file]}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the images, which a process that is handed a copy reads again."""
        return {name: value for name, value in vars(self).items() if name not in ("_encoded", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        self._encoded = [_encoded_images(file, self.image) for file in self.files]
        self._ends = list(accumulate(map(len, self._encoded)))

    def _place(self, index: int) -> tuple[int, int]:
        file = bisect_right(self._ends, index)
        return file, index - self._ends[file] + len(self._encoded[file])


def _schema(file: str) -> "pyarrow.Schema":
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_schema(file)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"`files` must be Parquet files, {file} is none: {str(error).splitlines()[0]}") from error


def _image_column(schema: "pyarrow.Schema", name: str | None, *, file: str) -> str:
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if name is None and len(fitting) != 1:
        raise InputError(f"`image` must be named unless one column has bytes, {file} has {fitting or 'none'}.")
    if name is not None and name not in fitting:
        raise InputError(f"`image` must be a column of bytes, one of {fitting} in {file}, got {name!r}.")
    return fitting[0] if name is None else name


def _label_column(schema: "pyarrow.Schema", name: str | None, names: dict[str, list[str]], *, file: str) -> str | None:
    from pyarrow import types

    integers = [field.name for field in schema if types.is_integer(field.type)]
    if name is not None and name not in integers:
        raise InputError(f"`label` must be a column of integers, one of {integers} in {file}, got {name!r}.")
    if name is None and len(names) > 1:
        raise InputError(f"`label` must be named, {file} has several columns of labels: {list(names)}.")
    return next(iter(names), None) if name is None else name


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(part.name == "bytes" and _is_binary(part.type) for part in kind)
    return _is_binary(kind)


def _is_binary(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _class_labels(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """Names of the classes by column, where Hugging Face's metadata tell."""
    text = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(text)["info"]["features"] if text else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _encoded_images(file: str, column: str) -> "pyarrow.ChunkedArray":
    import pyarrow
    from pyarrow import compute, parquet, types

    structured = types.is_struct(_schema(file).field(column).type)
    try:
        with parquet.ParquetFile(file) as opened:  # of a structure the bytes alone, not the path that is kept with them
            images = opened.read(columns=[f"{column}.bytes" if structured else column])[column]
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"`files` must be whole, {file} cannot be read: {str(error).splitlines()[0]}") from error
    return compute.struct_field(images, "bytes") if structured else images


def _numbers(files: list[str], column: str) -> Tensor:
    from pyarrow import parquet

    parts = [parquet.read_table(file, columns=[column])[column] for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.null_count:
            raise InputError(f"`label` must be known for every image, {part.null_count} rows of {file} have none.")
    return torch.cat([torch.tensor(part.to_numpy(), dtype=torch.int64) for part in parts])
