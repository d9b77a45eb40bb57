"""Speed and memory of the losses, beside their peers, in one run.

    hatch run bench:losses                 # the table of losses.md: 10 to 20 minutes on 2 cores
    hatch run bench:losses --sizes 256 --skip-memory
    hatch run bench:losses --huge          # 131,072 images on top: minutes more

Run it alone on the machine. All contenders do forward and backward of the same float32 rows, d = 128, temperature 0.1.
Times are medians over rounds in which each contender runs once, in turn; ratios are medians of the ratios of a round.
Memory is the highest total of torch's allocator during forward and backward, less what was there before and the
gradients of the inputs.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from cl_losses import cross_domain_loss, info_nce_loss, nt_xent_loss, sup_con_loss
from cl_losses._tiles import CPU_TILE
from measure import peak_bytes, setting
from torch import Tensor
from torch.nn import functional

TEMPERATURE, WIDTH = 0.1, 128
PACKAGES = ("cl-losses", "torch", "lightly", "pytorch-metric-learning")
SIZES = (8, 32, 128, 256, 1024, 4096, 8192)
# pytorch-metric-learning builds a tensor of n^3 entries: 2.3 GB at 256, 149 GB at 1024.
LARGEST_FOR_CUBIC = 256
Run = Callable[[], object]


def dense(z_a: Tensor, z_b: Tensor) -> Tensor:
    """NT-Xent as one writes it: the matrix of all cosines, its diagonal filled, cross entropy."""
    z = functional.normalize(torch.cat([z_a, z_b]), dim=1)
    n = len(z_a)
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(similarity, torch.arange(2 * n).roll(n))


def products_alone(z: Tensor) -> None:
    """The matrix products of NT-Xent's tiles and nothing else: 4 M^2 d floating point operations."""
    rows, size = len(z), CPU_TILE
    tile, dz = z.new_empty(size, size), torch.zeros_like(z)
    for backward in (False, True):
        for i in range(0, rows, size):
            for j in range(i, rows, size):
                x, y = z[i : i + size], z[j : j + size]
                part = tile[: len(x), : len(y)] if len(x) == len(y) == size else z.new_empty(len(x), len(y))
                torch.mm(x, y.t(), out=part)
                if backward:
                    dz[i : i + size].addmm_(part, y)
                    if i != j:
                        dz[j : j + size].addmm_(part.t(), x)


def both_ways(loss: Callable[..., Tensor], *leaves: Tensor) -> Run:
    """Forward and backward of `loss` of `leaves`."""

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*leaves).backward()

    return run


def contenders(n: int) -> dict[str, Run]:
    """Name to forward and backward, at n images."""
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning.losses import NTXentLoss as Cubic
    from pytorch_metric_learning.losses import SelfSupervisedLoss

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, n, WIDTH, generator=generator)
    a, b = (part.clone().requires_grad_() for part in z)
    stacked, unit = z.clone().requires_grad_(), functional.normalize(z.flatten(0, 1), dim=1)
    labels = torch.randint(0, max(2, n // 25), (n,), generator=generator)
    domains = torch.arange(n) % 2
    runs = {
        "cl-losses": both_ways(lambda a, b: nt_xent_loss(a, b, temperature=TEMPERATURE), a, b),
        "lightly": both_ways(NTXentLoss(temperature=TEMPERATURE), a, b),
        "dense": both_ways(dense, a, b),
        "products alone": lambda: products_alone(unit),
        "info_nce_loss": both_ways(lambda a, b: info_nce_loss(a, b, temperature=TEMPERATURE, symmetric=True), a, b),
        "sup_con_loss": both_ways(lambda z: sup_con_loss(z, labels, temperature=TEMPERATURE), stacked),
        "cross_domain_loss": both_ways(
            lambda z: cross_domain_loss(z, labels, domains, temperature=TEMPERATURE), stacked
        ),
    }
    if n <= LARGEST_FOR_CUBIC:
        runs["pytorch-metric-learning"] = both_ways(SelfSupervisedLoss(Cubic(temperature=TEMPERATURE)), a, b)
    return runs


def check_peers() -> None:
    """Raise unless those that are compared compute the same, as the pages say."""
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning import losses as pml

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, WIDTH, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 4])
    ours = nt_xent_loss(a, b, temperature=TEMPERATURE)
    for loss in (
        NTXentLoss(temperature=TEMPERATURE),
        pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=TEMPERATURE)),
        dense,
    ):
        torch.testing.assert_close(loss(a, b), ours, rtol=1e-6, atol=1e-6)
    theirs = pml.SupConLoss(temperature=TEMPERATURE)(a, labels)
    torch.testing.assert_close(theirs, sup_con_loss(a, labels, temperature=TEMPERATURE), rtol=1e-6, atol=1e-6)


def interleaved(runs: dict[str, Run], *, seconds: float) -> dict[str, list[float]]:
    """Seconds of each run in every round; as many rounds as fit, at least 3, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    # A peer that takes seconds where the others take milliseconds is timed in three rounds only.
    first = {name: timed(run) for name, run in runs.items()}
    total = sum(first.values())
    slow = {name for name in runs if first[name] > total / 2 and len(runs) > 2}
    quick = sum(first[name] for name in runs if name not in slow)
    rounds = max(3, min(100, int(seconds / max(quick, 1e-4))))
    for number in range(rounds):
        for name, run in runs.items():
            if name not in slow or number < 3:
                times[name].append(timed(run))
    return times


def timed(run: Run) -> float:
    """Seconds that a run takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ratio(times: dict[str, list[float]], name: str, to: str = "cl-losses") -> float:
    """How many times longer `name` takes than `to`: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=False))


def huge(n: int = 131_072) -> str:
    """Time and memory of the resident set at a size that no matrix would fit."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, WIDTH, generator=generator).requires_grad_() for _ in range(2))
    nt_xent_loss(a[:64], b[:64], temperature=TEMPERATURE).backward()
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    loss = nt_xent_loss(a, b, temperature=TEMPERATURE)
    forward = time.perf_counter() - begin
    loss.backward()
    seconds = time.perf_counter() - begin
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    matrix = (2 * n) ** 2 * 4 / 2**30
    return (
        f"NT-Xent at {n:,} images, {2 * n:,} views: forward {forward:.0f} s, with backward {seconds:.0f} s, loss "
        f"{loss.item():.4f}; the process grew by {grown:,.0f} MiB at its highest (inputs and gradients, "
        f"{4 * n * WIDTH * 4 / 2**20:,.0f} MiB, not counted). One matrix of that size is {matrix:,.0f} GiB."
    )


def milliseconds(seconds: float) -> str:
    """With three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def speed_table(sizes: list[int], *, seconds: float) -> str:
    """Markdown: times and ratios at every size."""
    peers = ["lightly", "dense", "pytorch-metric-learning", "products alone"]
    family = ["info_nce_loss", "sup_con_loss", "cross_domain_loss"]
    lines = [
        "| images | cl-losses, ms | " + " | ".join(f"{peer}, ms" for peer in peers) + " | lightly / cl-losses | "
        "dense / cl-losses | pytorch-metric-learning / cl-losses | cl-losses / products alone |",
        "|" + "---:|" * (len(peers) + 6),
    ]
    more = ["| images | " + " | ".join(f"{name}, ms (times NT-Xent)" for name in family) + " |", "|" + "---:|" * 4]
    for n in sizes:
        runs = contenders(n)
        # Two groups of rounds: after gigabytes have come and gone, the next in turn pays for it.
        times = interleaved({name: runs[name] for name in runs if name in ["cl-losses", *peers[:3]]}, seconds=seconds)
        close = interleaved({name: runs[name] for name in ["products alone", "cl-losses", *family]}, seconds=seconds)
        times["products alone"] = close["products alone"]
        medians = {name: milliseconds(statistics.median(values)) for name, values in times.items()}
        cells = [f"{n:,}", medians["cl-losses"], *(medians.get(peer, "") for peer in peers)]
        cells += [f"{ratio(times, peer):.1f}" if peer in times else "" for peer in peers[:3]]
        above = ratio(close, "cl-losses", "products alone")
        lines.append("| " + " | ".join([*cells, f"{above:.2f}"]) + " |")
        others = [f"{milliseconds(statistics.median(close[name]))} ({ratio(close, name):.2f})" for name in family]
        more.append(f"| {n:,} | " + " | ".join(others) + " |")
        print(lines[-1], more[-1], sep="\n", flush=True)
    return "\n".join(lines) + "\n\n" + "\n".join(more)


def memory_table(sizes: list[int]) -> str:
    """Markdown: memory beyond inputs and gradients at every size."""
    names = ["cl-losses", "lightly", "dense", "pytorch-metric-learning", "sup_con_loss", "cross_domain_loss"]
    lines = ["| images | 3 M d 4 bytes + 16 MiB | " + " | ".join(names) + " |", "|" + "---:|" * (len(names) + 2)]
    for n in sizes:
        gradients = 2 * n * WIDTH * 4
        runs = contenders(n)
        found = {name: (peak_bytes(runs[name]) - gradients) / 2**20 for name in names if name in runs}
        cells = [f"{found[name]:,.1f}" if name in found else "" for name in names]
        lines.append(f"| {n:,} | {3 * gradients / 2**20 + 16:,.1f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print the tables, and write them to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of images")
    parser.add_argument("--seconds", type=float, default=20, help="for the rounds of a size, at least three rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--huge", action="store_true", help="131,072 images as well")
    parser.add_argument("--out", help="markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    check_peers()
    # First: the highest resident set of a process is never smaller than what ran before.
    large = f"## Large\n\n{huge()}" if arguments.huge else ""
    print(large, flush=True)
    parts = [f"# Losses, beside their peers\n\n`hatch run bench:losses`. {setting(*PACKAGES)}"]
    parts.append(
        "## Time of forward and backward, d = 128\n\n" + speed_table(arguments.sizes, seconds=arguments.seconds)
    )
    if not arguments.skip_memory:
        parts.append("## Memory beyond inputs and gradients, MiB\n\n" + memory_table(arguments.sizes))
    if large:
        parts.append(large)
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
