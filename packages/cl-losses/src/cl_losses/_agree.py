"""Collect rows from every process, after all of them agreed on what is collected."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed import distributed_c10d

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Processes(NamedTuple):
    """The processes that share a batch: their group, this one's place in it, and the number of images of each.

    A process by itself, or one that does not gather, is the only one.
    """

    group: distributed.ProcessGroup | None
    rank: int
    shares: list[int]

    @classmethod
    def of(cls, shares: list[int], *, gather: bool, name: str) -> "Processes":
        """The processes that agreed on `shares`."""
        if len(shares) == 1:
            return cls(None, 0, shares)
        group = named_group(name) if gather else None
        return cls(group, distributed.get_rank(group), shares)

    @property
    def world(self) -> int:
        """Number of processes."""
        return len(self.shares)

    @property
    def images(self) -> int:
        """Number of this process's images."""
        return self.shares[self.rank]

    def rows(self, views: int) -> slice:
        """This process's rows among those of all processes, `views` of each image."""
        start = views * sum(self.shares[: self.rank])
        return slice(start, start + views * self.images)


class Described(NamedTuple):
    """What all processes must have in common but the number of images."""

    images: int
    width: int
    dtype: torch.dtype
    device: torch.device
    call: dict[str, object]


def world_size(*, gather: bool, name: str) -> int:
    """The number of processes to collect from, this one included."""
    if not (gather and distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(named_group(name))


def group_name(group: distributed.ProcessGroup | None) -> str:
    """A group's name, because an operator of torch takes no group; empty for the default one."""
    return "" if group is None else group.group_name


def named_group(name: str) -> distributed.ProcessGroup | None:
    """The group of `group_name`."""
    if not name:
        return None
    # torch's own collectives for the compiler find their groups by this function; there is no public one.
    return distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]


def agree(describe: Callable[[], Described], *, gather: bool, name: str) -> Processes:
    """Check the arguments by `describe`, and agree on sizes with the other processes.

    One exchange of a few integers. A process whose `describe` raises takes part in it before it raises, so that the
    others raise as well instead of waiting for it. The host waits: it needs the sizes.

    Raises:
        ValueError: What `describe` raises; another process refused its arguments; or width, dtype or hyperparameters
            are not the same on all processes.
    """
    if world_size(gather=gather, name=name) == 1:
        return Processes(None, 0, [describe().images])
    group = named_group(name)
    try:
        mine = describe()
    except BaseException:  # whatever it is, the others wait for this process
        _exchange([0] * 5, device=None, group=group)
        raise
    header = [1, mine.images, mine.width, DTYPES.index(mine.dtype), zlib.crc32(str(mine.call).encode())]
    headers = _exchange(header, device=mine.device, group=group)
    refused = [rank for rank, other in enumerate(headers) if not other[0]]
    if refused:
        raise ValueError(f"The arguments of process {refused[0]} were refused; its own error says why.")
    for place, what, mean in ((2, "width", str), (3, "dtype", lambda code: str(DTYPES[code]))):
        seen = [other[place] for other in headers]
        if len(set(seen)) > 1:
            raise ValueError(f"All processes must have one {what}, got {', '.join(mean(x) for x in seen)} by rank.")
    if len({other[4] for other in headers}) > 1:
        here = ", ".join(f"{name}={value}" for name, value in mine.call.items())
        raise ValueError(f"All processes must call the same loss with the same hyperparameters, here {here}.")
    return Processes.of([other[1] for other in headers], gather=gather, name=name)


def _exchange(
    header: list[int], *, device: torch.device | None, group: distributed.ProcessGroup | None
) -> list[list[int]]:
    if distributed.get_backend(group) != "nccl":
        device = torch.device("cpu")
    elif device is None or device.type != "cuda":  # refused arguments may hold no tensor on a GPU
        device = torch.device("cuda", torch.cuda.current_device())
    mine = torch.tensor(header, dtype=torch.int64, device=device)
    headers = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(headers, mine, group=group)
    return torch.stack(headers).tolist()


def gather_rows(rows: Tensor, processes: Processes, *, views: int = 1) -> Tensor:
    """The rows of all processes in the order of their ranks, `views` for each image. No gradient."""
    if processes.world == 1:
        return rows
    sizes = [views * share for share in processes.shares]
    # Collectives want equal shapes: pad to the longest, cut afterwards. The list form of all_gather is the only
    # one that no release of torch since 2.4 deprecates.
    longest = max(sizes)
    padded = rows.contiguous()
    if rows.shape[0] < longest:
        padded = torch.cat([rows, rows.new_zeros(longest - rows.shape[0], *rows.shape[1:])])
    together = rows.new_empty(len(sizes), longest, *rows.shape[1:])
    distributed.all_gather(list(together), padded, group=processes.group)
    if min(sizes) == longest:
        return together.flatten(0, 1)
    return torch.cat([part[:size] for part, size in zip(together, sizes, strict=True)])
