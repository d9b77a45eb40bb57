"""CRC-32C, the checksum of TensorFlow's files, about as fast as they are read."""

from functools import cache

import torch
from torch import Tensor

POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
CHUNK = 1 << 20  # bytes looked at in one go: with what is made of them they stay in the caches


def crc32c(data: Tensor) -> int:
    """Checksum of bytes on the CPU, shape (n,), uint8; 0xE3069283 for b"123456789".

    The checksum is linear in the bits, so the words of a chunk are added up as a tree: of every two neighbours the
    first moves past the second, by tables that all pairs of a level share, and the two are one word.
    """
    register, odd = 0xFFFFFFFF, len(data) % 4
    for byte in data[:odd].tolist():
        register = register >> 8 ^ _divided(register & 0xFF ^ byte, bits=8)
    for start in range(odd, len(data), CHUNK):
        words = data[start : start + CHUNK].clone().view(torch.int32).long() & 0xFFFFFFFF  # a clone is aligned
        words[0] ^= register
        level = 0
        while len(words) > 1:
            if len(words) % 2:
                words = torch.cat([words.new_zeros(1), words])  # zeros in front change nothing
            words = _moved(words[::2], _tables(level)) ^ words[1::2]
            level += 1
        register = int(_moved(words, _tables(0)))
    return register ^ 0xFFFFFFFF


def _moved(words: Tensor, tables: Tensor) -> Tensor:
    return tables[0][words & 0xFFFF] ^ tables[1][words >> 16]


@cache
def _tables(level: int) -> Tensor:
    """What 2**level words of zeros make of each value of a word's low half and of its high half, shape (2, 65536)."""
    bits = [1 << bit for bit in range(32)]
    if level == 0:
        moved = torch.tensor([_divided(bit, bits=32) for bit in bits], device="cpu")
    else:
        moved = torch.tensor(bits, device="cpu")
        for _ in range(2):
            moved = _moved(moved, _tables(level - 1))
    tables = torch.zeros(2, 1, dtype=torch.int64, device="cpu")
    for bit in moved.view(2, 16, 1).unbind(1):
        tables = torch.cat([tables, tables ^ bit], dim=1)
    return tables


def _divided(register: int, *, bits: int) -> int:
    for _ in range(bits):
        register = register >> 1 ^ POLYNOMIAL * (register & 1)
    return register
