"""The processes of test_distributed.py: `python _worker.py FOLDER`.

Each takes part in every number of processes that is larger than its rank, and writes seen_RANK.pt to the folder: what
it saw of values, gradients and errors, by number of processes. They are forked, so that torch is imported once.
"""

import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import _cases as cases
import _planted as planted
import cl_losses._tiles as tiles
import torch
from _refusals import REFUSALS, two_views
from cl_losses import BYOLLoss, NTXentLoss, nt_xent_loss
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

COLLECTIVES = [
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single"),
    *("barrier", "broadcast", "broadcast_object_list", "gather", "isend", "recv", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "scatter", "send"),
]
SECONDS = 60  # that a process waits for the others: an error is then seen as one, not as a test that never ends


def join(world: int, rank: int, meeting: Path) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=SECONDS),
    )


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """The collectives that are called meanwhile."""
    calls: Counter[str] = Counter()
    originals = {name: getattr(distributed, name) for name in COLLECTIVES}

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return originals[name](*arguments, **keywords)

        return call

    for name in COLLECTIVES:
        setattr(distributed, name, counting(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(distributed, name, original)


def average(seen: dict[str, Any], group: Any = None) -> dict[str, Any]:
    """With the gradients averaged over processes, as DistributedDataParallel does."""
    for grad in seen["grads"].values():
        distributed.all_reduce(grad, group=group)
        grad /= distributed.get_world_size(group)
    return seen


def observe_cases(world: int, rank: int) -> dict[str, Any]:
    """Every case with every share, and once more with tiles so small that a share takes several."""
    seen = {}
    parameters = cases.parameters()
    for kind, shares in cases.SHARES[world].items():
        given = cases.share(cases.batch(), shares, rank)
        for name, case in cases.GATHERING.items():
            seen[name, kind] = average(cases.differentiate(case, given, parameters))
        seen["metrics", kind] = list(cases.METRICS(given, parameters))
        seen["counts", kind] = {name: count(given, parameters) for name, count in cases.COUNTS.items()}
    kind = next(reversed(cases.SHARES[world]))
    given = cases.share(cases.batch(), cases.SHARES[world][kind], rank)
    before, tiles.CPU_TILE = tiles.CPU_TILE, 3
    for name, case in cases.GATHERING.items():
        seen[name, "small tiles"] = average(cases.differentiate(case, given, parameters))
    tiles.CPU_TILE = before
    return seen


def observe_own(world: int, rank: int) -> dict[str, Any]:
    """What needs no other row, and what is told not to gather, with as many rows on each process."""
    shares = next(iter(cases.SHARES[world].values()))
    given = cases.share(cases.batch(), shares, rank)
    seen = {name: average(cases.differentiate(case, given, cases.parameters())) for name, case in cases.OWN.items()}
    with counted() as calls:
        for name in cases.LOCAL:
            seen[name, "local"] = cases.differentiate(cases.GATHERING[name], given, cases.parameters(), gather=False)
        seen["metrics", "local"] = list(cases.METRICS(given, cases.parameters(), gather=False))
        seen["counts", "local"] = {
            name: count(given, cases.parameters(), gather=False) for name, count in cases.COUNTS.items()
        }
    seen["local collectives"] = calls
    return seen


def observe_group(world: int, rank: int) -> dict[str, Any]:
    members = cases.MEMBERS[world]
    group = distributed.new_group(members)  # every process has to take part in making it
    if rank not in members:
        return {}
    given = cases.share(cases.batch(), cases.SHARES[world]["uneven"], rank)
    parameters = cases.parameters()
    seen: dict[str, Any] = {
        (name, "group"): average(cases.differentiate(case, given, parameters, group=group), group)
        for name, case in cases.GATHERING.items()
    }
    seen["metrics", "group"] = list(cases.METRICS(given, parameters, group=group))
    seen["counts", "group"] = {name: count(given, parameters, group=group) for name, count in cases.COUNTS.items()}
    return seen


def observe_collectives(rank: int) -> dict[str, Any]:
    """How often processes wait for each other, forward and backward."""
    seen = {}
    for reduction in ("mean", "sum", "none"):
        z_a, z_b = (z.requires_grad_() for z in two_views(3 + rank))
        with counted() as forward:
            value = nt_xent_loss(z_a, z_b, temperature=0.5, reduction=reduction)
        with counted() as backward:
            value.sum().backward()
        seen["collectives", reduction] = {"forward": forward, "backward": backward}
    return seen


def observe_wrapped(rank: int) -> dict[str, Any]:
    """Through DistributedDataParallel, both views in one forward."""
    modules = {
        "nt_xent": (NTXentLoss(temperature=0.5), "uneven"),
        "nt_xent sum": (NTXentLoss(temperature=0.5, reduction="sum"), "no image"),
        "byol": (BYOLLoss(), "even"),
    }
    seen = {}
    for name, (module, kind) in modules.items():
        weight = cases.parameters()["weight"]
        layer = nn.Linear(5, 4, bias=False, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
        model = DistributedDataParallel(layer)
        given = cases.share(cases.batch(), cases.SHARES[2][kind], rank)
        value = module(*model(torch.cat([given["x"][:, 0], given["x"][:, 1]])).chunk(2))
        value.backward()
        seen[name, "wrapped"] = {"value": value.detach(), "grads": {"weight": layer.weight.grad.clone()}}
    return seen


def observe_compiled(rank: int) -> dict[str, Any]:
    given, parameters = cases.share(cases.batch(), cases.SHARES[2]["uneven"], rank), cases.parameters()
    z_a, z_b = cases.projections(given, parameters, 2)

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        return nt_xent_loss(z_a, z_b, temperature=0.5)

    seen = {}
    for name, call in (("eager", loss), ("compiled", torch.compile(loss, fullgraph=True, backend="aot_eager"))):
        views = [z.clone().requires_grad_() for z in (z_a, z_b)]
        value = call(*views)
        seen[name] = [value.detach(), *torch.autograd.grad(value, views)]
    return seen


def observe_golden(rank: int) -> dict[str, Any]:
    """Values and gradients of the golden vectors, two images on each process."""

    def differentiate(loss: Callable[..., Tensor], **arguments: Any) -> dict[str, Tensor]:
        views = [z.split(2)[rank].clone().requires_grad_() for z in cases.golden()]
        value = loss(*views, **arguments)
        return {"value": value.detach(), "grad": torch.stack(torch.autograd.grad(value.mean(), views))}

    return {
        "golden": differentiate(nt_xent_loss, temperature=0.5),
        "golden rows": differentiate(nt_xent_loss, temperature=0.5, reduction="none"),
        "golden local": differentiate(nt_xent_loss, temperature=0.5, gather=False),
        "golden detached": differentiate(planted.detached_gather),
    }


def observe_planted(world: int, rank: int) -> dict[str, Any]:
    """A dense loss, right and with bugs, as the loss it is compared with."""
    names = ("right", "local_negatives", "detached_gather", "without_world_factor", "in_wrong_order")
    given, parameters = cases.share(cases.batch(), cases.SHARES[world]["even"], rank), cases.parameters()

    def case(name: str) -> cases.Case:
        return cases.Case(lambda given, parameters: getattr(planted, name)(*cases.projections(given, parameters, 2)))

    return {(name, "planted"): average(cases.differentiate(case(name), given, parameters)) for name in names}


def observe_refusals(world: int, rank: int) -> dict[str, Any]:
    """The error of every call that must be refused, and the loss of a right call right after it."""
    seen: dict[str, Any] = {}
    for name, refusal in REFUSALS.items():
        error: Exception | None = None
        try:
            refusal.call(rank == world - 1)
        except (ValueError, TypeError, RuntimeError) as caught:
            error = caught
        seen[name, "refused"] = (type(error).__name__, str(error))
        if isinstance(error, RuntimeError):  # waited in vain: what follows would as well
            break
        seen[name, "next"] = nt_xent_loss(*two_views(), temperature=0.5)
    return seen


def observe(world: int, rank: int) -> dict[str, Any]:
    seen = observe_cases(world, rank) | observe_own(world, rank)
    if world > 1:
        seen |= observe_collectives(rank) | observe_planted(world, rank)
    if world > 2:
        seen |= observe_group(world, rank)
    if world == 2:
        # with two only: the compiler takes seconds to import, also for the wrapper
        seen |= observe_golden(rank) | observe_wrapped(rank) | observe_compiled(rank)
    if world in (2, 3):
        seen |= observe_refusals(world, rank)
    return seen


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    seen = {}
    for world in sorted(cases.SHARES, reverse=True):  # so that no process waits for smaller worlds
        if rank < world:
            join(world, rank, folder / f"meet_{world}")
            seen[world] = observe(world, rank)
            distributed.barrier()
            distributed.destroy_process_group()
    torch.save(seen, folder / f"seen_{rank}.pt")


def main(folder: Path) -> int:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank, folder)) for rank in range(max(cases.SHARES))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
