"""Proof that a loss has on several processes the value and gradients that it has on one."""

import math
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, multiprocessing, nn

Loss = Callable[..., Tensor]


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
    batch = _batch(inputs, batch_dims, rows_at_least=max(world_sizes) ** (2 if uneven else 1))
    _check_sendable(loss_fn)
    _differentiate(loss_fn, batch.inputs, batch.weight)  # what fails on one process, fails here
    kinds = ("even", "uneven", "copies") if uneven else ("even", "copies")
    worst = 0.0
    observed = _observe(_Task(loss_fn, batch, tuple(world_sizes), kinds), seconds=seconds)
    for world in world_sizes:
        for kind in kinds:
            if kind != "copies":  # these are for the diagnosis only: equal shares hide errors
                worst = max(worst, _compare(loss_fn, batch, observed, world, kind, tolerance))
    return worst


class _Batch(NamedTuple):
    """Inputs, the dimension of each that is split, and the weight that all processes share."""

    inputs: tuple[Tensor, ...]
    dims: tuple[int, ...]
    weight: Tensor

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[self.dims[0]]

    def shares(self, world: int, kind: str) -> list[int]:
        """Rows of each process: as equal as can be, or growing with the rank."""
        if kind == "uneven":
            parts = [2 * rank + 1 for rank in range(world)]
            ends = [round(self.rows * sum(parts[: rank + 1]) / sum(parts)) for rank in range(world)]
        else:
            ends = [self.rows // world * (rank + 1) for rank in range(world)]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def part(self, begin: int, length: int) -> tuple[Tensor, ...]:
        """`length` rows of every input."""
        return tuple(x.narrow(dim, begin, length) for x, dim in zip(self.inputs, self.dims, strict=True))

    def of_rank(self, rank: int, world: int, kind: str) -> tuple[Tensor, ...]:
        """What a process is given: its share, or, for copies, the first share whatever its rank."""
        shares = self.shares(world, kind)
        return self.part(0 if kind == "copies" else sum(shares[:rank]), shares[rank])

    def together(self, world: int, kind: str) -> tuple[Tensor, ...]:
        """What all processes are given, in one."""
        parts = [self.of_rank(rank, world, kind) for rank in range(world)]
        return tuple(torch.cat(some, dim=dim) for some, dim in zip(zip(*parts, strict=True), self.dims, strict=True))


class _Task(NamedTuple):
    loss_fn: Loss
    batch: _Batch
    worlds: tuple[int, ...]
    kinds: tuple[str, ...]


class _Seen(NamedTuple):
    value: Tensor
    grad: Tensor


def _batch(inputs: Sequence[Tensor] | None, dims: Sequence[int] | None, *, rows_at_least: int) -> _Batch:
    if distributed.is_available() and distributed.is_initialized():
        raise ValueError("`check_distributed` must be called where torch.distributed is not initialised.")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = max(12, rows_at_least)
    inputs = (normal(rows, 8), normal(rows, 8)) if inputs is None else inputs
    dims = (0,) * len(inputs) if dims is None else dims
    if len(inputs) == 0 or len(dims) != len(inputs):
        raise ValueError(f"`batch_dims` must be as many as `inputs`, at least 1, got {len(dims)} and {len(inputs)}.")
    if any(x.ndim <= dim for x, dim in zip(inputs, dims, strict=True)):
        raise ValueError(f"`inputs` must have the dimensions of `batch_dims`, {tuple(dims)}.")
    lengths = [x.shape[dim] for x, dim in zip(inputs, dims, strict=True)]
    if len(set(lengths)) > 1 or lengths[0] < rows_at_least:
        raise ValueError(f"`inputs` must hold one number of rows, at least {rows_at_least}, got {lengths}.")
    floating = [x for x in inputs if x.is_floating_point()]
    if not floating:
        raise ValueError("`inputs` must hold a floating point tensor: its gradient is what is checked.")
    wide = tuple(x.detach().double() if x.is_floating_point() else x for x in inputs)
    return _Batch(wide, tuple(dims), normal(floating[0].shape[-1], floating[0].shape[-1]))


def _check_sendable(loss_fn: Loss) -> None:
    try:
        pickle.dumps(loss_fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            "`loss_fn` must be a function of a module, a functools.partial of one, or an nn.Module, "
            f"so that other processes can import it, got {loss_fn}: {error}"
        ) from error


def _differentiate(loss_fn: Loss, inputs: Sequence[Tensor], weight: Tensor) -> _Seen:
    """Value, and gradient of the weight and of the loss's own parameters, all in one vector."""
    weight = weight.clone().requires_grad_()
    own = [p for p in loss_fn.parameters() if p.requires_grad] if isinstance(loss_fn, nn.Module) else []
    value = loss_fn(*(x @ weight if x.is_floating_point() else x for x in inputs))
    if value.ndim != 0:
        raise ValueError(f"`loss_fn` must return a scalar, got shape {tuple(value.shape)}.")
    found = torch.autograd.grad(value, [weight, *own], allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip([weight, *own], found, strict=True)]
    return _Seen(value.detach(), torch.cat([grad.flatten().double() for grad in grads]))


def _observe(task: _Task, *, seconds: float) -> list[dict[tuple[int, str], _Seen]]:
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
                value, grad = _differentiate(task.loss_fn, inputs, task.batch.weight)
            except BaseException:  # whatever it is, the calling process reports it
                if kind == "copies":  # no valid batch for this loss, on no process: there will be no hint
                    continue
                text = f"of {world} with {kind} shares:\n{traceback.format_exc()}"
                (Path(folder) / f"error_{rank}.txt").write_text(text)
                raise SystemExit(1) from None
            distributed.all_reduce(grad)  # DistributedDataParallel's averaging
            seen[world, kind] = _Seen(value, grad / world)
        distributed.barrier()  # or the first to leave takes its connections from those that still answer each other
        distributed.destroy_process_group()
    torch.save(seen, Path(folder) / f"seen_{rank}.pt")


def _compare(
    loss_fn: Loss,
    batch: _Batch,
    observed: list[dict[tuple[int, str], _Seen]],
    world: int,
    kind: str,
    tolerance: float,
) -> float:
    """The largest relative error of a number of processes and kind of shares; raise if it is too large."""
    seen = [observed[rank][world, kind] for rank in range(world)]
    expected = _differentiate(loss_fn, batch.together(world, kind), batch.weight)
    value_error, grad_error = _value_error(seen, batch.shares(world, kind), expected), _grad_error(seen, expected)
    if max(value_error, grad_error) <= tolerance:
        return max(value_error, grad_error)
    if value_error > tolerance:
        likely = _explain_value(loss_fn, batch, observed, world, kind, tolerance)
    elif kind == "uneven" and _own_means(loss_fn, batch, seen, world, kind):
        likely = (
            "it is the mean over each process's own rows, and averaging over processes does not weigh them by their "
            "rows. Where all have equally many it may be right: `uneven=False` checks that."
        )
    else:
        likely = _explain_gradient(seen[0].grad, expected.grad, world)
    values = ", ".join(f"{one.value.item():.10g}" for one in seen)
    raise AssertionError(
        f"On {world} processes with {kind} shares the loss is not that of one process: {likely}\n"
        f"values by rank {values}, expected {expected.value.item():.10g} (relative error {value_error:.1e})\n"
        f"averaged gradient: norm {seen[0].grad.norm().item():.10g}, expected {expected.grad.norm().item():.10g} "
        f"(relative error {grad_error:.1e}, tolerance {tolerance:.1e})"
    )


def _value_error(seen: list[_Seen], shares: list[int], expected: _Seen) -> float:
    """The same value everywhere, or a mean over own rows whose mean is right: the better of the two."""
    values = torch.stack([one.value for one in seen]).double()
    scale = max(abs(expected.value.item()), 1e-300)
    everywhere = (values - expected.value).abs().max().item() / scale
    weights = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    on_average = abs((values * weights).sum().item() - expected.value.item()) / scale
    error = min(everywhere, on_average)
    return math.inf if math.isnan(error) else error


def _grad_error(seen: list[_Seen], expected: _Seen) -> float:
    error = (seen[0].grad - expected.grad).abs().max() / expected.grad.abs().max().clamp_min(1e-300)
    return math.inf if error.isnan() else error.item()


def _explain_value(
    loss_fn: Loss,
    batch: _Batch,
    observed: list[dict[tuple[int, str], _Seen]],
    world: int,
    kind: str,
    tolerance: float,
) -> str:
    seen = [observed[rank][world, kind] for rank in range(world)]
    if _own_means(loss_fn, batch, seen, world, kind):
        return "each process contrasts its own rows only; nothing is gathered."
    copies = [observed[rank][world, "copies"] for rank in range(world) if (world, "copies") in observed[rank]]
    if len(copies) < world:
        return "the value itself differs."
    same = _differentiate(loss_fn, batch.together(world, "copies"), batch.weight)
    if _value_error(copies, batch.shares(world, "copies"), same) <= tolerance:
        return (
            "it is right when all processes hold the same rows, so rows of other processes are in the wrong place: "
            "gathered in another order than positives or labels assume, or the rank's offset is missing."
        )
    return "the value itself differs."


def _own_means(loss_fn: Loss, batch: _Batch, seen: list[_Seen], world: int, kind: str) -> bool:
    """Whether each process's value is that of its own rows by themselves."""
    own = [_differentiate(loss_fn, batch.of_rank(rank, world, kind), batch.weight).value for rank in range(world)]
    return all(abs(one.value - value) <= 1e-6 * abs(value) for one, value in zip(seen, own, strict=True))


def _explain_gradient(grad: Tensor, expected: Tensor, world: int) -> str:
    factor = ((grad * expected).sum() / expected.square().sum()).item()
    if (grad - factor * expected).norm() <= 1e-6 * expected.norm() * max(abs(factor), 1e-6):
        for what, size in (("1 / the number of processes", 1 / world), ("the number of processes", world)):
            if math.isclose(factor, size, rel_tol=1e-6):
                return (
                    f"the gradient is wrong by a factor of {what}. Averaging divides the sum over processes by their "
                    "number, so a loss over the whole batch needs it as a factor, and a mean over own rows does not."
                )
        if abs(factor - 1) < 1e-4:
            return "the gradient is right but for rounding; a loss that computes in float32 needs `tolerance=1e-5`."
        return f"the gradient is wrong by a factor of {factor:.6g}."
    cosine = torch.cosine_similarity(grad.flatten(), expected.flatten(), dim=0).item()
    return (
        "the value is right, the gradient is not even in direction "
        f"(cosine {cosine:.6f}, norm ratio {(grad.norm() / expected.norm()).item():.4f}): rows of other processes "
        "count in the value but get no gradient. torch.distributed.all_gather has none: gather with one that sums."
    )
