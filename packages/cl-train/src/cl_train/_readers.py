"""Worker processes that read images: what one of them does wrong ends the run with its name, and never hangs it."""

import atexit
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from functools import partial
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing import Process
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from cl_train._datasets import ImageDataset
from cl_train._errors import InputError
from cl_train._interrupt import SIGNALS

Cut = Callable[[Tensor, Tensor], Any]
Indices = list[tuple[int, int]]  # number and key of each image of a piece

_POLL = 1.0  # seconds between looks at whether the workers are alive
_IDLE = -1
_HINTS = {"SIGKILL": ", as when memory runs out", "SIGBUS": ", as when /dev/shm is full"}


class Piece(NamedTuple):
    """Cuts of some images, as a tensor or a tuple of tensors, and what was said of the others, by their places."""

    cuts: Tensor | tuple[Tensor, ...] | None
    unread: list[tuple[int, str]]


class PieceReader(Dataset[Piece]):
    """Reads and cuts images, in any process.

    Args:
        dataset: Where from.
        cut: `(image (1, c, h, w), key (1,)) -> tensor or tuple of tensors (1, ...)`.
        workers: Number of processes that read.
    """

    def __init__(self, dataset: ImageDataset, cut: Cut, *, workers: int) -> None:
        self.dataset, self.cut = dataset, cut
        # What image each worker is at, for the main process to look at when it hears nothing.
        self.at = torch.full((max(workers, 1),), _IDLE).share_memory_()

    def __getitem__(self, piece: Indices) -> Piece:
        """Cuts of the images that can be read."""
        worker = get_worker_info()
        row = 0 if worker is None else worker.id
        cuts: list[Any] = []
        unread: list[tuple[int, str]] = []
        for place, (number, key) in enumerate(piece):
            self.at[row] = number
            try:
                cuts.append(self._cut(number, key))
            except InputError as error:
                unread.append((place, str(error)))
        self.at[row] = _IDLE
        joined = default_collate(cuts) if cuts else None  # in a worker, straight into shared memory
        return Piece(tuple(joined) if isinstance(joined, list) else joined, unread)

    def busy(self) -> list[int]:
        """Numbers of the images that workers are at."""
        return [number for number in self.at.tolist() if number != _IDLE]

    def _cut(self, number: int, key: int) -> Any:
        try:
            image = self.dataset.read(number)
            if min(image.shape[1:]) < 2:
                h, w = image.shape[1:]
                raise InputError(f"{self.dataset.name(number)} must have at least 2 x 2 pixels, it has {h} x {w}.")
            cuts = self.cut(image[None], torch.tensor([key]))
        except InputError:
            raise
        except BaseException as error:  # its traceback comes from another process; without this, of any image
            error.add_note(f"This was with {self.dataset.name(number)}.")
            raise
        return cuts[0] if isinstance(cuts, Tensor) else tuple(part[0] for part in cuts)


def read_pieces(
    reader: PieceReader, pieces: Iterable[Indices], *, workers: int, pin: bool, timeout: float
) -> Generator[Piece]:
    """Pieces in their order, read by so many processes, each two pieces ahead; by this one if there are none.

    One set of workers serves all pieces, so they read for the next epoch while this one ends. They heed no signal that
    asks a run to stop: a shell sends Ctrl-C, and torchrun, systemd and Slurm send SIGTERM, to them as well, and
    the main process has a step to finish. They end when this iterator does or is closed, or with the main process.

    Args:
        reader: What they do.
        pieces: Numbers and keys of images; taken when a worker is free.
        workers: Number of processes.
        pin: Whether to copy the pieces to pinned memory.
        timeout: Seconds, > 0, after which a worker hangs: the next piece is missing and no worker has begun another
            image.

    Raises:
        RuntimeError: A worker died or hangs. What else it raises is raised here, with its traceback and the image.
    """
    if workers == 0:
        yield from map(reader.__getitem__, pieces)
        return
    loader: DataLoader[Piece] = DataLoader(
        reader,
        batch_size=None,  # an item is a piece
        sampler=pieces,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin,
        timeout=min(_POLL, timeout),
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # from which seeds are drawn that nobody uses; else from the global one
    )
    iterator = _start(loader)
    end = partial(_end, iterator)
    atexit.register(end)  # before multiprocessing's own, which waits for ever for those that ignore SIGTERM
    try:
        while (piece := _next(iterator, reader, timeout)) is not None:
            yield piece
    finally:
        atexit.unregister(end)
        end()


def _start(loader: DataLoader[Piece]) -> Any:
    """The loader's iterator, without torch's handler of dead children: it would raise anywhere, in a save, too."""
    if sys.platform == "win32":
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return iterator


def _next(iterator: Any, reader: PieceReader, timeout: float) -> Piece | None:
    """The next piece, or None after the last."""
    waits, busy = 0, reader.busy()
    while True:
        try:
            return next(iterator, None)
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith("Caught "):  # by a worker, which goes on
                raise
            timed_out = str(error).startswith("DataLoader timed out")
            # A piece can arrive whose worker dies before it has handed its memory over: an OSError or EOFError.
            ended = wait([worker.sentinel for worker in iterator._workers], timeout=0 if timed_out else 10)
            for row, worker in enumerate(iterator._workers):
                if worker.sentinel in ended:
                    worker.join()
                    raise RuntimeError(_obituary(worker, reader, row)) from error
            if not timed_out:
                raise
            # Waits are counted, not seconds: a job that was suspended for an hour has waited once.
            waits, busy = (waits + 1, busy) if reader.busy() == busy else (0, reader.busy())
            if waits * _POLL >= timeout:
                names = ", ".join(map(reader.dataset.name, busy)) or "none"
                _kill(iterator._workers)
                raise RuntimeError(f"no image was read for {timeout:g} s, workers hang at: {names}.") from error


def _obituary(worker: Process, reader: PieceReader, row: int) -> str:
    code = worker.exitcode or 0
    how = f"ended with code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"was killed by {name}{_HINTS.get(name, '')}"
    number = int(reader.at[row])
    where = "between two images" if number == _IDLE else f"while it read {reader.dataset.name(number)}"
    return f"worker process {row} {how}, {where}."


def _end(iterator: Any) -> None:
    iterator._shutdown_workers()  # DataLoader has no public way to end; left to the garbage, it may come after exit
    _kill(iterator._workers)


def _kill(workers: list[Process]) -> None:
    for worker in workers:
        worker.kill()  # they ignore SIGTERM
        worker.join(timeout=10)  # on a disk that is gone, even this may not end it


def _ignore_signals(worker: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(piece: Any) -> Any:
    return piece
