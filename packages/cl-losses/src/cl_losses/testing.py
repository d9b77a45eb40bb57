"""Proof that a loss has on several processes the value and gradients that it has on one."""

import pickle
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, multiprocessing

from cl_losses._batch import Batch, make_batch
from cl_losses._diagnosis import Loss, Seen, compare, differentiate


def check_distributed(
    loss_fn: Loss,
    *,
    inputs: Sequence[Tensor] | None = None,
    batch_dims: Sequence[int] | None = None,
    world_sizes: Sequence[int] = (2, 3),
    uneven: bool = True,
    tolerance: float = 1e-10,
    seconds: float = 120,
) -> float:
    """Raise unless a loss has, on several processes with a share of the batch each, the gradients it has on one.

    Starts as many processes as the largest world size, on the CPU with gloo, gives each another part of the batch, and
    compares with this process and the whole batch: the value, and the gradient of a weight that all processes share,
    averaged over processes as DistributedDataParallel does. What is compared is `loss_fn(x @ weight, ...)`. Works for
    any loss, not only those of this package; of a module, the gradients of its own parameters are compared as well.

    The value may be that of the whole batch on every process, or its mean over each process's own rows.

    Args:
        loss_fn: `(*inputs) -> scalar`. Other processes must be able to import it: a function of a module, a
            `functools.partial` of one, or an `nn.Module`; no lambda. In a script, call this under
            `if __name__ == "__main__":`.
        inputs: The whole batch, on the CPU. Floating point tensors, made float64, are multiplied with the weight on
            their last dimension; others, such as labels, are passed as they are. By default two views, (12, 8) each.
        batch_dims: The dimension of each input along which it is split; 0 by default. (1, 0) for `sup_con_loss` with
            rows (views, n, d) and labels (n,).
        world_sizes: Numbers of processes, one after the other.
        uneven: Also give each process another number of rows.
        tolerance: Largest error of gradient and value, relative to the largest entry of what is expected. The default
            is for losses that keep float64; 1e-5 suits one that computes in float32.
        seconds: After so long, processes are stopped and count as waiting for each other.

    Returns:
        The largest relative error that was found.

    Raises:
        AssertionError: Value or gradient differ, or a process failed or waited for ever. The message says what is
            likely: negatives that are not shared, rows of other processes in the wrong place, gathered rows without a
            gradient, a factor of the number of processes.
        TypeError: `loss_fn` cannot be sent to other processes.
        ValueError: The batch has fewer rows than needed, or torch.distributed is initialised in this process.
    """
    # Uneven shares grow like 1, 3, 5, ...: their sum is the square of the number of processes.
    batch = make_batch(inputs, batch_dims, rows_at_least=max(world_sizes) ** (2 if uneven else 1))
    _check_sendable(loss_fn)
    differentiate(loss_fn, batch.inputs, batch.weight)  # what fails on one process, fails here
    kinds = ("even", "uneven", "copies") if uneven else ("even", "copies")
    worst = 0.0
    observed = _observe(_Task(loss_fn, batch, tuple(world_sizes), kinds), seconds=seconds)
    for world in world_sizes:
        for kind in kinds:
            if kind != "copies":  # these are for the diagnosis only: equal shares hide errors
                worst = max(worst, compare(loss_fn, batch, observed, world, kind, tolerance))
    return worst


class _Task(NamedTuple):
    loss_fn: Loss
    batch: Batch
    worlds: tuple[int, ...]
    kinds: tuple[str, ...]


def _check_sendable(loss_fn: Loss) -> None:
    try:
        pickle.dumps(loss_fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            "`loss_fn` must be a function of a module, a functools.partial of one, or an nn.Module, "
            f"so that other processes can import it, got {loss_fn}: {error}"
        ) from error


def _observe(task: _Task, *, seconds: float) -> list[dict[tuple[int, str], Seen]]:
    """What each process saw. None outlives this call."""
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_run_process, args=(rank, task, folder, seconds)) for rank in range(max(task.worlds))
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            waiting = [rank for rank, process in enumerate(processes) if process.is_alive()]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        _raise_failures(Path(folder), processes, waiting, seconds)
        return [torch.load(Path(folder) / f"seen_{rank}.pt", weights_only=False) for rank in range(len(processes))]


def _raise_failures(folder: Path, processes: list[Any], waiting: list[int], seconds: float) -> None:
    errors = sorted(folder.glob("error_*.txt"), key=lambda path: path.stat().st_mtime)
    if errors:  # the first; those of the others follow from it
        raise AssertionError(
            f"`loss_fn` failed on {errors[0].stem.replace('error_', 'process ')}: {errors[0].read_text()}"
        )
    if waiting:
        raise AssertionError(
            f"Processes {waiting} were still waiting after {seconds} s: a process that calls fewer collectives than "
            "the others, or with another shape, makes them wait for ever."
        )
    # What a process handed in counts, however it ends then: a thread left of a process group can abort it.
    failed = [
        f"{rank} with exit code {process.exitcode}"
        for rank, process in enumerate(processes)
        if not (folder / f"seen_{rank}.pt").exists()
    ]
    if failed:
        raise AssertionError(f"Processes ended early: {', '.join(failed)}. Their standard error says why.")


def _run_process(rank: int, task: _Task, folder: str, seconds: float) -> None:
    torch.set_num_threads(1)
    seen = {}
    for world in task.worlds:
        if rank >= world:
            continue
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet_{world}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )
        for kind in task.kinds:
            try:
                inputs = task.batch.of_rank(rank, world, kind)
                value, grad = differentiate(task.loss_fn, inputs, task.batch.weight)
            except BaseException:  # whatever it is, the calling process reports it
                if kind == "copies":  # no valid batch for this loss, on no process: there will be no hint
                    continue
                text = f"of {world} with {kind} shares:\n{traceback.format_exc()}"
                (Path(folder) / f"error_{rank}.txt").write_text(text)
                raise SystemExit(1) from None
            distributed.all_reduce(grad)  # DistributedDataParallel's averaging
            seen[world, kind] = Seen(value, grad / world)
        distributed.barrier()  # or the first to leave takes its connections from those that still answer each other
        distributed.destroy_process_group()
    torch.save(seen, Path(folder) / f"seen_{rank}.pt")
