"""TensorFlow's checkpoint files ("tensor bundle": PREFIX.index and PREFIX.data-00000-of-00001), without TensorFlow.

The index is a sorted table in the format of LevelDB (github.com/google/leveldb, doc/table_format.md): blocks of keys
and values, a block that says where they are, and a footer that says where that one is. A value is a protocol buffer,
`BundleEntryProto` (tensorflow/core/protobuf/tensor_bundle.proto), which says where in a data file a tensor lies.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_models._crc32c import crc32c

FOOTER = 48  # bytes: two handles, padding, the magic number
MAGIC = 0xDB4775248B80FB57
FLOAT32 = 1  # of TensorFlow's `DataType`


class Entry(NamedTuple):
    """Where a tensor lies, and what it is."""

    file: Path
    offset: int
    size: int
    checksum: int
    dtype: int
    shape: tuple[int, ...]
    partitioned: bool


def read_index(prefix: Path) -> dict[str, Entry]:
    """Entries of a checkpoint by name, each block of the index checked by its checksum.

    Raises:
        FileNotFoundError: There is no PREFIX.index; the message says which prefixes there are.
        ValueError: It is not a whole, uncompressed, little-endian index.
    """
    path = Path(f"{prefix}.index")
    if not path.is_file():
        folder = prefix if prefix.is_dir() else prefix.parent
        found = ", ".join(sorted(file.name.removesuffix(".index") for file in folder.glob("*.index")))
        raise FileNotFoundError(
            f"`prefix` must be what comes before '.index', there is no {path}; prefixes in {folder}: {found or 'none'}."
        )
    try:
        values = dict(_table(path.read_bytes()))
        if b"" not in values:
            raise ValueError("it has no header")
        shards = _header(values.pop(b""))
        return {key.decode(): _entry(prefix, shards, value) for key, value in values.items()}
    except ValueError as error:
        raise ValueError(
            f"`prefix` must lead to a whole and uncompressed index of a TensorFlow checkpoint, {path} is none: {error}."
        ) from error


def read_tensor(name: str, entry: Entry) -> Tensor:
    """A tensor of a checkpoint, float32, checked by its checksum.

    Raises:
        OSError: There is no data file, or it cannot be read.
        ValueError: The file is too short or damaged, or the tensor is partitioned or of another type.
    """
    if entry.partitioned:
        raise ValueError(f"{name!r} must be one tensor, it is stored in partitions, which are not supported.")
    if entry.dtype != FLOAT32:
        raise ValueError(f"{name!r} must be float32 (TensorFlow's type 1), it is of TensorFlow's type {entry.dtype}.")
    if entry.size != 4 * prod(entry.shape):
        raise ValueError(f"{name!r} must take 4 bytes for each of {entry.shape}, the index gives it {entry.size}.")
    with entry.file.open("rb") as file:
        there = file.seek(0, 2)
        if there < entry.offset + entry.size:  # before memory is asked for
            raise ValueError(f"{entry.file} must have {entry.offset + entry.size} bytes for {name!r}, it has {there}.")
        file.seek(entry.offset)
        content = bytearray(entry.size)
        file.readinto(content)
    data = torch.frombuffer(content, dtype=torch.uint8)
    if _masked(crc32c(data)) != entry.checksum:
        raise ValueError(f"{entry.file} is damaged: the checksum of {name!r} is wrong.")
    return data.view(torch.float32).view(entry.shape)


def _masked(checksum: int) -> int:
    """A checksum as it is stored: turned and shifted, so that what holds checksums can be summed up itself."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


class _Cursor:
    """Bytes that are read from the front; what goes beyond their end raises."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left():
            raise ValueError("a part of it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """A whole number in groups of 7 bits, the lowest first; the eighth bit says that more follow."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if data[-8:] != MAGIC.to_bytes(8, "little"):
        raise ValueError("it does not end as one, so it is cut off or something else")
    footer = _Cursor(data[-FOOTER:])
    _, _, offset, size = (footer.varint() for _ in range(4))  # the first two: a block that bundles leave empty
    for _, handle in _pairs(_block(data, offset, size)):
        cursor = _Cursor(handle)
        yield from _pairs(_block(data, cursor.varint(), cursor.varint()))


def _block(data: bytes, offset: int, size: int) -> bytes:
    """A block, checked and without its trailer: a byte for its compression, four for the checksum of all before."""
    end = offset + size
    if end + 5 > len(data) - FOOTER:
        raise ValueError("a block lies outside of it")
    summed = torch.frombuffer(bytearray(data[offset : end + 1]), dtype=torch.uint8)
    if _masked(crc32c(summed)) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise ValueError("the checksum of a block is wrong, so it is damaged")
    if data[end] != 0:
        raise ValueError(f"a block is compressed (type {data[end]}; 1 is Snappy)")
    return data[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; a key is stored as what it does not share with the start of the one before."""
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # the places where keys share nothing, and how many
    if end < 0:
        raise ValueError("a part of it ends too early")
    cursor = _Cursor(block[:end])
    key = b""
    while cursor.left():
        shared, own, length = (cursor.varint() for _ in range(3))
        key = key[:shared] + cursor.take(own)
        yield key, cursor.take(length)


def _header(value: bytes) -> int:
    """Number of data files."""
    fields = _fields(value)
    if fields.get(2, [0])[-1] != 0:
        raise ValueError("its tensors are big-endian")
    return fields.get(1, [0])[-1]


def _entry(prefix: Path, shards: int, value: bytes) -> Entry:
    fields = _fields(value)
    dtype, shard, offset, size, checksum = (fields.get(number, [0])[-1] for number in (1, 3, 4, 5, 6))
    dims = [_fields(dim) for shape in fields.get(2, []) for dim in _fields(shape).get(2, [])]
    return Entry(
        file=Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}"),
        offset=offset,
        size=size,
        checksum=checksum,
        dtype=dtype,
        shape=tuple(dim.get(1, [0])[-1] for dim in dims),
        partitioned=7 in fields,
    )


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Values of a protocol buffer by the numbers of their fields: whole numbers, or bytes for all that has a length."""
    fields: dict[int, list[Any]] = {}
    cursor = _Cursor(message)
    while cursor.left():
        number, kind = divmod(cursor.varint(), 8)
        if kind == 0:
            value: int | bytes = cursor.varint()
        elif kind == 2:
            value = cursor.take(cursor.varint())
        elif kind in (1, 5):
            value = int.from_bytes(cursor.take(8 if kind == 1 else 4), "little")
        else:
            raise ValueError(f"a field of its entries is of the unknown kind {kind}")
        fields.setdefault(number, []).append(value)
    return fields
