"""Memory of the CPU that is used again."""

from functools import cache

import torch

_MOST = 32 << 20  # glibc's DEFAULT_MMAP_THRESHOLD_MAX on 64 bits


@cache
def keep_freed_memory() -> None:
    """Let the C library keep the memory of what a chunk leaves for the next chunk, instead of returning it.

    glibc returns blocks from 128 KiB on to the system when they are freed, and the system hands them out again page by
    page, zeroed: about 1 us for 4 KiB, several times what an operation on them takes. Once a larger block has been
    freed, up to 32 MiB, glibc keeps blocks of its size (mallopt(3), M_MMAP_THRESHOLD, "dynamic"). Freeing one of that
    size, never written to, is all that happens here, once in a process; elsewhere than in glibc it has no effect.
    """
    torch.empty(_MOST - (1 << 13), dtype=torch.uint8)  # less the allocator's own header and alignment
