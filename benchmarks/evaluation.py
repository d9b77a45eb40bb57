"""How long the judges of features take, beside scikit-learn, in one run.

    hatch run bench:evaluation             # the table: some minutes on 2 cores
    hatch run bench:evaluation --rows 5000 --queries 1000 --out table.md

Run it alone on the machine. Features are synthetic: ten clusters that overlap, with a spectrum that falls, through a
ReLU. Each contender runs once. scikit-learn's logistic regression is given a few C of the 45 penalties, each from
zeros as it does it, spread evenly over the range; the figure is their mean, times 45. It has no linear probe: its time
there is that of the logistic regression with as many C as the probe has settings.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from cl_train import knn_eval, linear_probe, logistic_eval
from measure import setting
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

PACKAGES = ("cl-train", "torch", "scikit-learn", "numpy")
CLASSES, K, TEMPERATURE, PENALTIES, SETTINGS = 10, 200, 0.1, 45, 30
Features = tuple[Tensor, Tensor, Tensor, Tensor]


def features(rows: int, queries: int, width: int) -> Features:
    """Training and test features of the same clusters."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, width + 1) ** -0.7
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    centres = torch.randn(CLASSES, width, generator=generator) / 2
    labels = torch.randint(CLASSES, (rows + queries,), generator=generator)
    noise = torch.randn(rows + queries, width, generator=generator)
    x = (3 * (centres[labels] + 2.5 * noise) * spectrum @ mix + 0.3).relu()
    return x[:rows], labels[:rows], x[rows:], labels[rows:]


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """Seconds that a run takes, and the top-1 it returns."""
    begin = time.perf_counter()
    top1 = run()
    seconds = time.perf_counter() - begin
    print(f"{seconds:.1f} s, top-1 {top1:.4f}", flush=True)  # before its peer is done, which may take minutes
    return seconds, top1


def neighbours(data: Features) -> float:
    """Top-1 of scikit-learn's brute-force neighbours with the weights of `knn_eval`."""
    train_x, train_y, test_x, test_y = (part.numpy() for part in data)
    model = KNeighborsClassifier(
        min(K, len(train_x)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / TEMPERATURE),
    )
    return float(model.fit(train_x, train_y).score(test_x, test_y))


def regressions(data: Features, *, few: int) -> tuple[float, float, str]:
    """Mean seconds of a fit by scikit-learn's lbfgs, the best test top-1, and what each took."""
    train_x, train_y, test_x, test_y = (part.numpy() for part in data)
    times, found, told = [], [], []
    for penalty in np.logspace(5, -6, few):
        model = LogisticRegression(C=1 / penalty, max_iter=1000)
        begin = time.perf_counter()
        model.fit(train_x, train_y)
        times.append(time.perf_counter() - begin)
        found.append(float(model.score(test_x, test_y)))
        told.append(
            f"lambda {penalty:.0e}: {times[-1]:.1f} s, {int(model.n_iter_[0])} iterations, top-1 {found[-1]:.4f}"
        )
        print(told[-1], flush=True)
    return sum(times) / few, max(found), "; ".join(told)


def table(data: Features, *, few: int) -> str:
    """Markdown: each judge beside its peer."""
    rows, queries, width = len(data[0]), len(data[2]), data[0].shape[1]
    lines = [
        f"{rows:,} training and {queries:,} test features, {width} wide, {CLASSES} classes.\n",
        "| judge | seconds | top-1 | scikit-learn, seconds | its top-1 | times as long |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def add(judge: str, own: tuple[float, float], peer: tuple[float, float], note: str = "") -> None:
        lines.append(
            f"| {judge} | {own[0]:.1f} | {own[1]:.4f} | {peer[0]:.1f}{note} | {peer[1]:.4f} | {peer[0] / own[0]:.1f} |"
        )
        print(lines[-1], flush=True)

    own = timed(lambda: knn_eval(*data, k=K, temperature=TEMPERATURE).top1)
    add(f"`knn_eval`, k = {K}", own, timed(lambda: neighbours(data)))
    regression = timed(lambda: logistic_eval(*data).top1)
    probe = timed(lambda: linear_probe(*data).top1)
    mean, best, told = regressions(data, few=few)
    add(f"`logistic_eval`, {PENALTIES} penalties and the refit", regression, (mean * PENALTIES, best), " (scaled)")
    add(f"`linear_probe`, {SETTINGS} settings and the refit", probe, (mean * SETTINGS, best), " (scaled)")
    lines.append(
        f"\nscikit-learn's regressions: {few} penalties were fitted, {mean:.1f} s each on average ({told}), scaled to "
        f"{PENALTIES} and {SETTINGS}. Its top-1 is the best of them on the test features, where ours was chosen "
        "without."
    )
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it to a file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--few", type=int, default=5, help="penalties that scikit-learn is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = features(arguments.rows, arguments.queries, arguments.width)
    text = f"# Judges of features, beside scikit-learn\n\n`hatch run bench:evaluation`. {setting(*PACKAGES)}\n\n"
    text += table(data, few=arguments.few)
    print(f"\n{text}")
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
