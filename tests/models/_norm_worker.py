"""What test_sync_batchnorm.py and test_ema.py see on 2 and 3 processes, and on one.

`python _norm_worker.py FOLDER` makes the processes: each takes part in every world that is larger than its rank, and
writes seen_RANK.pt to the folder. They are forked, so that torch is imported once, and both tests share one run.
"""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cl_models._sync_batchnorm as code
import torch
from cl_models import EMA, ProjectionHead, sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

ROWS, STEPS, PAUSE = 12, 5, 3
SHARES: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"even": (6, 6), "uneven": (11, 1), "no row": (12, 0)},
    3: {"even": (4, 4, 4), "uneven": (7, 4, 1), "no row": (9, 0, 3)},
}
MEMBERS = [0, 2]  # of a group in the world of 3
SECONDS = 60  # that a process waits for the others
WORLDS = list(SHARES)

COMBINED, ALL_REDUCE = code._combined, distributed.all_reduce  # as they are where bugs are planted

Seen = dict[Any, Any]


class Layer(NamedTuple):
    """A BatchNorm and what it is given."""

    kind: type[nn.Module]
    shape: tuple[int, ...]
    options: Mapping[str, Any] = MappingProxyType({})
    without: tuple[str, ...] = ()  # parameters that are taken away
    mean: float = 0.5
    dtype: torch.dtype = torch.float64  # of the input

    def make(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        layer = self.kind(5, **self.options).to(dtype)
        for index, (name, parameter) in enumerate(list(layer.named_parameters())):
            if name in self.without:
                layer.register_parameter(name, None)
            else:
                parameter.data.copy_(torch.tensor([0.75, 1.5, 1.0, 0.5, 1.25]).roll(index))
        return layer

    def batches(self) -> list[Tensor]:
        return [self.mean + normal(ROWS, *self.shape, seed=seed) * (1 + seed) for seed in range(2)]


LAYERS = {
    "1d": Layer(nn.BatchNorm1d, (5,)),
    "1d of sequences": Layer(nn.BatchNorm1d, (5, 3)),
    "2d": Layer(nn.BatchNorm2d, (5, 4, 3)),
    "3d": Layer(nn.BatchNorm3d, (5, 2, 3, 2)),
    "scale only": Layer(nn.BatchNorm1d, (5,), without=("bias",)),
    "shift only": Layer(nn.BatchNorm1d, (5,), without=("weight",)),
    "neither": Layer(nn.BatchNorm2d, (5, 4, 3), {"affine": False}),
    "untracked": Layer(nn.BatchNorm2d, (5, 4, 3), {"track_running_stats": False}),
    "cumulative": Layer(nn.BatchNorm1d, (5,), {"momentum": None}),
    "other numbers": Layer(nn.BatchNorm1d, (5,), {"momentum": 0.3, "eps": 0.1}),
    "large mean": Layer(nn.BatchNorm1d, (5,), mean=1e5),
}
ROUNDED = {
    "float32": Layer(nn.BatchNorm2d, (5, 4, 3), mean=1000, dtype=torch.float32),
    "bfloat16": Layer(nn.BatchNorm2d, (5, 4, 3), dtype=torch.bfloat16),
    "float16": Layer(nn.BatchNorm2d, (5, 4, 3), dtype=torch.float16),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Place(NamedTuple):
    """A process's place among those that share a batch."""

    rank: int = 0
    shares: tuple[int, ...] = (ROWS,)
    group: Any = None

    def own(self, rows: Tensor) -> Tensor:
        return rows.split(self.shares)[self.rank]

    def loss(self, values: Tensor) -> Tensor:
        """This process's part of the sum over all rows, so that the average of its gradients is right."""
        return values.sum() * len(self.shares)

    def average(self, grad: Tensor) -> Tensor:
        if len(self.shares) > 1:
            ALL_REDUCE(grad, group=self.group)
        return grad / len(self.shares)


ALONE = Place()


# One layer


def train_layer(layer: nn.Module, batches: list[Tensor], place: Place = ALONE) -> Seen:
    """Two batches forward and backward."""
    outs, dxs = [], []
    for batch in batches:
        x = place.own(batch).clone().requires_grad_()
        out = layer(x)
        place.loss(out.double() * place.own(normal(*batch.shape, seed=9))).backward()
        outs.append(out.detach())
        dxs.append(x.grad / len(place.shares))
    layer.eval()
    with torch.no_grad():
        evaluated = layer(batches[0][:2])
    grads = {name: place.average(p.grad.clone()) for name, p in layer.named_parameters()}
    return {"out": outs, "dx": dxs, "grads": grads, "state": layer.state_dict(), "evaluated": evaluated}


def observe_layers(place: Place, kind: str) -> Seen:
    seen = {}
    for name, case in LAYERS.items():
        layer = sync_batchnorm(case.make())
        seen[name, kind] = train_layer(layer, case.batches(), place)
    for name, case in ROUNDED.items():
        layer = sync_batchnorm(case.make(torch.float32))
        seen[name, kind] = train_layer(layer, [x.to(case.dtype) for x in case.batches()], place)
    return seen


def observe_half(place: Place) -> Seen:
    """A layer whose parameters and buffers are float16 too."""
    case = LAYERS["2d"]
    layer = sync_batchnorm(case.make(torch.float16))
    return {"half": train_layer(layer, [x.half() for x in case.batches()], place)}


# Planted bugs: what many have written


def mean_of_means(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, squares, count = COMBINED(moments)
    return moments[:, : len(mean)].mean(0), squares, count


def squares_within(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without the squares between the means of the processes."""
    mean, _, count = COMBINED(moments)
    return mean, moments[:, len(mean) : -1].sum(0), count


PLANTED: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "mean of means": (code, "_combined", mean_of_means),
    "squares within": (code, "_combined", squares_within),
    "own statistics": (code, "_gathered", lambda moments, group: moments[None]),
    "own sums in backward": (distributed, "all_reduce", lambda *arguments, **keywords: None),
}


def observe_planted(place: Place) -> Seen:
    seen, case = {}, LAYERS["2d"]
    for name, (holder, attribute, bug) in PLANTED.items():
        right = getattr(holder, attribute)
        setattr(holder, attribute, bug)
        try:
            seen[name, "planted"] = train_layer(sync_batchnorm(case.make()), case.batches(), place)
        finally:
            setattr(holder, attribute, right)
    return seen


# Whole networks


class Net(nn.Module):
    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    head = ProjectionHead(6, 5, 4)
    with torch.no_grad():
        for layer in head.layers[::3]:
            layer.weight *= 50  # as drawn, BatchNorm's eps counts, and 1e-15 in a weight is 1e-9 after five steps
    return nn.Sequential(Net(), head).double()


def images(seed: int) -> Tensor:
    return normal(ROWS, 3, 6, 6, seed=100 + seed) + seed


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() for name, value in state.items()}


def train_network(place: Place = ALONE) -> Seen:
    """States after 1 and 5 steps."""
    model = network()
    wrapped = DistributedDataParallel(sync_batchnorm(model)) if len(place.shares) > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    states = []
    for step in range(STEPS):
        out = wrapped(place.own(images(step)))
        optimizer.zero_grad()
        place.loss((out - place.own(normal(ROWS, 4, seed=step))).square() / ROWS).backward()
        optimizer.step()
        states.append(copied(model.state_dict()))
    return {1: states[0], STEPS: states[-1]}


class Byol:
    """An online network, its target and their optimiser; without `wrap`, gradients are averaged one by one."""

    def __init__(self, place: Place, *, wrap: bool, seed: int = 0) -> None:
        self.place, self.wrap, self.online = place, wrap, network(seed)
        if len(place.shares) > 1:
            sync_batchnorm(self.online)
        self.target = EMA(self.online, 0.9, total_steps=STEPS)
        self.wrapped = DistributedDataParallel(self.online) if wrap else self.online
        self.optimizer = torch.optim.SGD(self.online.parameters(), 0.05, momentum=0.9)

    def parts(self) -> dict[str, Any]:
        return {"online": self.online, "target": self.target, "optimizer": self.optimizer}

    def step(self, step: int) -> None:
        out, wanted = self.wrapped(self.place.own(images(step))), self.target(self.place.own(images(step) * 1.5))
        self.optimizer.zero_grad()
        self.place.loss((out - wanted).square() / ROWS).backward()
        for parameter in () if self.wrap else self.online.parameters():
            parameter.grad = self.place.average(parameter.grad)
        self.optimizer.step()
        self.target.update(self.wrapped)

    def states(self) -> Seen:
        return {"online": copied(self.online.state_dict()), "target": copied(self.target.state_dict())}


def train_byol(place: Place = ALONE, *, wrap: bool = False, pause: bool = False) -> Seen:
    """The states at the end; `pause` saves in the middle and goes on with other objects."""
    run = Byol(place, wrap=wrap)
    for step in range(STEPS):
        if pause and step == PAUSE:
            file = io.BytesIO()
            torch.save({name: part.state_dict() for name, part in run.parts().items()}, file)
            file.seek(0)
            run = Byol(place, wrap=wrap, seed=1)
            saved = torch.load(file)
            for name, part in run.parts().items():
                part.load_state_dict(saved[name])
        run.step(step)
    return run.states()


# Everything else


def observe_group(rank: int) -> Seen:
    group = distributed.new_group(MEMBERS)
    case = LAYERS["2d"]
    if rank not in MEMBERS:
        return {"group": said(lambda: sync_batchnorm(case.make(), group=group))}
    place = Place(MEMBERS.index(rank), (5, 7), group)
    seen = {"group": train_layer(sync_batchnorm(case.make(), group=group), case.batches(), place)}
    online = sync_batchnorm(network(), group=group)
    x = place.own(images(0))
    seen["copy in group"] = [EMA(online, 0.9)(x), online(x).detach()]
    alone = distributed.new_group([rank], use_local_synchronization=True)
    seen["group of one"] = train_layer(sync_batchnorm(case.make(), group=alone), case.batches())
    return seen


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def observe_few(world: int, rank: int) -> Seen:
    """What is said of one value per channel in all, and of none; then two values, by the same layer."""
    layer = sync_batchnorm(nn.BatchNorm1d(5).double())
    x = normal(2, 5)
    seen: Seen = {}
    for total in (0, 1):
        seen["said", total] = said(lambda total=total: layer(x[:total] if rank == 1 else x[:0]))
    seen["state"] = copied(layer.state_dict())
    seen["two"] = layer(x[rank : rank + 1])
    seen["channels"] = said(lambda: layer(normal(2, 4)))
    seen["dimensions"] = said(lambda: layer(normal(2, 5, 3, 3)))
    return {"few": seen}


COLLECTIVES = [
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "all_to_all_single"),
    *("barrier", "broadcast", "broadcast_object_list", "gather", "isend", "recv", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "scatter", "send"),
]


@contextmanager
def counted(seen: Seen, name: str) -> Iterator[None]:
    """The collectives that are called meanwhile."""
    calls: Counter[str] = Counter()
    originals = {name: getattr(distributed, name) for name in COLLECTIVES}

    def call(name: str, *arguments: Any, **keywords: Any) -> Any:
        calls[name] += 1
        return originals[name](*arguments, **keywords)

    for each in COLLECTIVES:
        setattr(distributed, each, partial(call, each))
    try:
        yield
    finally:
        for each, original in originals.items():
            setattr(distributed, each, original)
    seen[name] = dict(calls)


def observe_collectives() -> Seen:
    seen: Seen = {}
    case = LAYERS["2d"]
    layer, x = sync_batchnorm(case.make()), case.batches()[0]
    with counted(seen, "forward"):
        out = layer(x.clone().requires_grad_())
    with counted(seen, "backward"):
        out.sum().backward()
    out = layer(x)
    with counted(seen, "backward of a first layer"):
        out.sum().backward()
    with counted(seen, "evaluation"):
        layer.eval()(x.clone().requires_grad_()).sum().backward()
    target = EMA(network(), 0.9)
    with counted(seen, "update"):
        target.update(network(1))
    return {"collectives": seen}


def observe(world: int, rank: int) -> Seen:
    seen: Seen = {}
    for kind, shares in SHARES[world].items():
        place = Place(rank, shares)
        seen |= observe_layers(place, kind)
        seen["network", kind] = train_network(place)
        seen["byol", kind] = train_byol(place, wrap=True)
    uneven = Place(rank, SHARES[world]["uneven"])
    seen |= observe_planted(uneven) | observe_half(uneven)
    # DistributedDataParallel adds up three processes in another order in its first step than later: not bit for bit
    seen["whole"], seen["paused"] = train_byol(uneven), train_byol(uneven, pause=True)
    seen["wrapped"] = said(lambda: EMA(DistributedDataParallel(network()), 0.9))
    seen |= observe_few(world, rank) | observe_collectives()
    if world == 3:
        seen |= observe_group(rank)
    return seen


# The processes


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    seen = {}
    for world in sorted(WORLDS, reverse=True):  # so that no process waits for smaller worlds
        if rank < world:
            meeting = f"file://{folder / f'meet_{world}'}"
            wait = timedelta(seconds=SECONDS)
            distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=wait)
            seen[world] = observe(world, rank)
            distributed.barrier()
            distributed.destroy_process_group()
    torch.save(seen, folder / f"seen_{rank}.pt")


def main(folder: Path) -> int:
    """The number of processes that failed."""
    warnings.simplefilter("error")
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports half of torch: once, not in every fork
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank, folder)) for rank in range(max(WORLDS))]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
        time.sleep(0.02)
    for process in processes:
        process.kill()  # those that would wait for one that failed
        process.join()
    return sum(process.exitcode != 0 for process in processes)


@cache
def spawn() -> dict[int, list[Seen]]:
    """By number of processes, what each of them saw; no process outlives this."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder]
        launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, error = launcher.communicate(timeout=2 * SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)  # the processes that it forked
            launcher.wait()
        assert launcher.returncode == 0, error
        ranks = [torch.load(Path(folder) / f"seen_{rank}.pt") for rank in range(max(WORLDS))]
    return {world: [ranks[rank][world] for rank in range(world)] for world in WORLDS}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
