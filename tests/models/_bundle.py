"""Writes TensorFlow's checkpoint files, from the description of the formats: nothing here is shared with the reader."""

import struct
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

MAGIC = 0xDB4775248B80FB57
TYPES = {torch.float32: 1, torch.float64: 2, torch.int64: 9, torch.float16: 19}


@cache
def remainders() -> list[int]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
        found.append(value)
    return found


def crc32c(data: bytes) -> int:
    """Byte by byte with a table."""
    found, crc = remainders(), 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ found[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((((crc >> 15) | (crc << 17)) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""  # zeros are not written


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def header(*, shards: int, endianness: int = 0) -> bytes:
    return number(1, shards) + number(2, endianness) + message(3, number(1, 1))


def entry(*, dtype: int, shape: tuple[int, ...], shard: int, offset: int, data: bytes, extra: bytes = b"") -> bytes:
    dims = b"".join(message(2, number(1, size)) for size in shape)
    place = number(3, shard) + number(4, offset) + number(5, len(data))
    checksum = varint(6 << 3 | 5) + struct.pack("<I", masked(crc32c(data)))
    return number(1, dtype) + message(2, dims) + place + checksum + extra


def block(pairs: list[tuple[bytes, bytes]], *, interval: int) -> bytes:
    """Keys without what they share with the one before, but for every so manieth; then where those are."""
    out, restarts, last = b"", [], b""
    for index, (key, value) in enumerate(pairs):
        shared = 0
        if index % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(pairs: dict[bytes, bytes], *, block_size: int, compression: int = 0) -> bytes:
    out = b""

    def append(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        kind = bytes([compression])
        out += content + kind + struct.pack("<I", masked(crc32c(content + kind)))
        return handle

    handles, waiting, size = [], [], 0
    for key in sorted(pairs):
        waiting.append((key, pairs[key]))
        size += len(key) + len(pairs[key])  # before prefixes are left out
        if size >= block_size:
            handles.append((key, append(block(waiting, interval=16))))
            waiting, size = [], 0
    if waiting:
        handles.append((waiting[-1][0] + b"~", append(block(waiting, interval=16))))
    metaindex = append(block([], interval=1))
    index = append(block(handles, interval=1))
    return out + (metaindex + index).ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def data_file(prefix: Path, shard: int, shards: int) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")


def write_bundle(
    prefix: Path,
    tensors: dict[str, Tensor],
    *,
    shards: int = 1,
    block_size: int = 2048,
    endianness: int = 0,
    compression: int = 0,
    partitioned: tuple[str, ...] = (),
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> None:
    """The files of a checkpoint; tensors go to the data files in turn, in order of their names."""
    content = [b""] * shards
    pairs = {b"": header(shards=shards, endianness=endianness)}
    for index, name in enumerate(sorted(tensors)):
        data, shard = tensors[name].contiguous().numpy().tobytes(), index % shards
        pairs[name.encode()] = entry(
            dtype=TYPES[tensors[name].dtype],
            shape=(shapes or {}).get(name, tuple(tensors[name].shape)),
            shard=shard,
            offset=len(content[shard]),
            data=data,
            extra=message(7, message(1, number(2, 2))) if name in partitioned else b"",
        )
        content[shard] += data
    for shard, data in enumerate(content):
        data_file(prefix, shard, shards).write_bytes(data)
    Path(f"{prefix}.index").write_bytes(table(pairs, block_size=block_size, compression=compression))
