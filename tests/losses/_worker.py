"""One process of test_distributed.py: `python _worker.py RANK WORLD FOLDER`.

Reads inputs.pt from the folder and writes result_RANK.pt there: what this process saw of values and gradients.
"""

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import cl_losses._nt_xent as module_under_test
import torch
from cl_losses import NTXentLoss, byol_loss, nt_xent_loss
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def share(rows: Tensor, shares: list[int], rank: int) -> Tensor:
    return rows.split(shares)[rank]


class Process:
    """This process's view of the common inputs."""

    def __init__(self, rank: int, world: int, inputs: dict[str, Tensor]) -> None:
        self.rank, self.world, self.inputs = rank, world, inputs

    def views(self, shares: list[int]) -> tuple[Tensor, Tensor]:
        total = sum(shares)
        return share(self.inputs["x_a"][:total], shares, self.rank), share(
            self.inputs["x_b"][:total], shares, self.rank
        )

    def averaged(self, loss, shares: list[int]) -> dict[str, Tensor]:
        """The value here, and the gradient of the shared weight averaged over processes, by hand."""
        model = linear(self.inputs["weight"])
        x_a, x_b = self.views(shares)
        value = loss(model(x_a), model(x_b))
        value.backward()
        grad = model.weight.grad.clone()
        distributed.all_reduce(grad)
        return {"value": value.detach(), "grad": grad / self.world}

    def wrapped(self, loss, shares: list[int]) -> dict[str, Tensor]:
        """The same through DistributedDataParallel, both views in one forward."""
        model = DistributedDataParallel(linear(self.inputs["weight"]))
        value = loss(*model(torch.cat(self.views(shares))).chunk(2))
        value.backward()
        return {"value": value.detach(), "grad": model.module.weight.grad.clone()}

    def golden(self, **arguments) -> dict[str, Tensor]:
        """Values and gradients of the golden vectors, two images on each process."""
        rows = [
            share(self.inputs[name], [2, 2], self.rank).clone().requires_grad_() for name in ("golden_a", "golden_b")
        ]
        value = nt_xent_loss(*rows, temperature=0.5, **arguments)
        value.mean().backward()
        return {"value": value.detach(), "grad": torch.stack([z.grad for z in rows])}


def incoming(rank: int, world: int) -> dict[str, Tensor]:
    """What becomes of the gradient that autograd hands to the gather's backward, and what comes out of it."""
    rows = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    given = torch.full((2 * world, 3), float(rank + 1), dtype=torch.float64)
    module_under_test_gather(rows, sizes=[2] * world, group=None).backward(given)
    return {"given": given, "grad": rows.grad}


def detached(rows: Tensor, **arguments) -> Tensor:
    """The planted bug: rows of other processes count, but nobody learns from them."""
    return module_under_test_gather(rows.detach(), **arguments)


module_under_test_gather = module_under_test.gather_rows


def observe(process: Process) -> dict[str, dict[str, Tensor]]:
    def nt_xent(**arguments):
        return lambda z_a, z_b: nt_xent_loss(z_a, z_b, temperature=0.5, **arguments)

    world = process.world
    equal, uneven = [2] * world, {2: [4, 2], 3: [3, 2, 4]}[world]
    seen = {
        "mean": process.averaged(nt_xent(), equal),
        "sum": process.averaged(nt_xent(reduction="sum"), equal),
        "none": process.averaged(lambda *z: nt_xent(reduction="none")(*z).mean(), equal),
        "mean uneven": process.averaged(nt_xent(), uneven),
        "sum uneven": process.averaged(nt_xent(reduction="sum"), uneven),
        "mean single": process.averaged(nt_xent(), [1] * world),
        "mean lopsided": process.averaged(nt_xent(), [0, 5, 3][:world]),
        "local": process.averaged(nt_xent(gather=False), equal),
    }
    if world == 2:
        # with 2 only: the wrapper's constructor takes seconds to import the compiler
        seen["mean ddp"] = process.wrapped(NTXentLoss(temperature=0.5), equal)
        seen["sum ddp"] = process.wrapped(NTXentLoss(temperature=0.5, reduction="sum"), uneven)
        seen["byol ddp"] = process.wrapped(byol_loss, equal)
        seen["golden"] = process.golden()
        seen["golden rows"] = process.golden(reduction="none")
        seen["golden local"] = process.golden(gather=False)
    if world == 3:
        pair = distributed.new_group([0, 2])  # every process has to take part in making it
        if process.rank != 1:
            z_a, z_b = (x @ process.inputs["weight"].T for x in process.views(equal))
            value = nt_xent_loss(z_a, z_b, temperature=0.5, group=pair)
            seen["group"] = {"value": value}
    seen["incoming"] = incoming(process.rank, world)
    module_under_test.gather_rows = detached
    seen["planted"] = process.averaged(nt_xent(), equal)
    if world == 2:
        seen["golden planted"] = process.golden()
    return seen


def main(rank: int, world: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    result = observe(Process(rank, world, torch.load(folder / "inputs.pt")))
    torch.save(result, folder / f"result_{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
