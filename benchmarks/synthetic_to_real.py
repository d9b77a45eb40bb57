"""From printed digits to handwriting: what each way of learning is worth, by the number of real labels.

    hatch run bench:synthetic-to-real                  # some 40 minutes on two cores; goes on where it was
    hatch run bench:synthetic-to-real --seeds 0        # one seed
    hatch run bench:synthetic-to-real --table          # the tables of what has been measured so far

Images, network, views, optimiser and numbers of steps are those of examples/synthetic_to_real.py; so are "before" and
"after" here. Every figure is kept in `OUT/figures-SEED.json` when it is there.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from cl_augment import EvalTransform
from cl_losses import CrossDomainLoss, nt_xent_loss, sup_con_loss
from cl_train import (
    CrossDomain,
    ImageDataset,
    Relabelled,
    extract_features,
    keep_labels,
    load_digits,
    make_accelerator,
    transfer_eval,
)
from measure import setting
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from synthetic_to_real import (  # the example, not this file
    Config,
    cross_entropy,
    draw_map,
    fonts_in,
    learn,
    make_method,
    match,
    render_digits,
)

REAL_LABELS = (0, 1, 5)
OURS = CrossDomainLoss(temperature=0.2, unlabelled="own_domain")
ONE_DOMAIN = CrossDomainLoss(temperature=0.2, same_domain="positive", unlabelled="own_domain")


def sup_con(z: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
    """SupCon, for which domains are all the same."""
    return sup_con_loss(z, labels, temperature=0.2)


def sim_clr(z: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
    """NT-Xent, for which labels do not count."""
    return nt_xent_loss(z[0], z[1], temperature=0.2)


# row -> numbers of real labels that make another training
BY_LABELS = {
    "cross entropy on synthetic": (0,),
    "cross entropy on synthetic, 40 epochs": (0,),
    "cross entropy on synthetic, BatchNorm of the real domain": (0,),
    "cross entropy on all labels": (1, 5),
    "SupCon on synthetic": (0,),
    "SupCon on both, ignoring domains": (0, 1, 5),
    "SimCLR on both without labels": (0,),
    "cross-domain loss, labelled images alone": (1, 5),
    "combination, before matching": (0, 1, 5),
    "combination, before matching, 40 epochs": (0,),
    "combination, classes matched": (0, 1, 5),
    "combination, classes matched, projections": (0, 1, 5),
    "SupCon, classes matched": (0, 1),
    "SupCon, classes matched, projections": (0, 1),
    "cross entropy, classes matched": (0, 1),
}


@dataclass
class Bench:
    """One seed: images, and the figures that there are: row -> column -> number."""

    out: Path
    seed: int

    def __post_init__(self) -> None:
        self.file = self.out / f"figures-{self.seed}.json"
        self.figures: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.config = Config(seed=self.seed, out=str(self.out))
        self.train, self.test = load_digits()
        fonts = fonts_in(Path(matplotlib.get_data_path()) / "fonts" / "ttf")
        self.synthetic = render_digits(fonts, per_class=self.config.per_class, seed=self.seed)
        self.accelerator = make_accelerator("bf16")

    def real(self, labels: int) -> Relabelled:
        """Real images, so many of each class with their label."""
        return keep_labels(self.train, labels, seed=self.seed)

    def train_on(
        self, real: ImageDataset, labels: int, name: str, method: CrossDomain, *, more: bool = False, **settings: Any
    ) -> CrossDomain:
        """A method after training on both domains."""
        config = replace(self.config, real_labels=labels)
        epochs = config.matched_epochs if more else config.epochs
        if name.endswith("40 epochs"):  # as many as before and after matching together
            epochs = config.epochs + config.matched_epochs
        folder = f"{name} {labels}-{self.seed}"
        learn(config, method, self.synthetic, real, self.accelerator, name=folder, epochs=epochs, **settings)
        return method

    def note(self, row: str, column: str, value: float) -> None:
        """Keep a figure."""
        self.figures.setdefault(row, {})[column] = value
        self.out.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.figures, indent=2) + "\n")
        print(f"seed {self.seed}, {row}, {column}: {value:.3f}", flush=True)

    def judge(self, row: str, labels: int, encoder: nn.Module, *, trained_with: int) -> None:
        """Real-test accuracy of a probe on synthetic labels and so many real ones, both weighing the same."""
        known = self.real(labels).labels
        parts = [extract_features(encoder, data, transform=EvalTransform(16)) for data in (self.synthetic, self.train)]
        (x, y), (real_x, _) = parts
        test_x, test_y = extract_features(encoder, self.test, transform=EvalTransform(16))
        chosen = (known >= 0).nonzero().flatten().repeat(len(x) // (10 * labels) if labels else 0)
        scores = transfer_eval(torch.cat([x, real_x[chosen]]), torch.cat([y, known[chosen]]), test_x, test_y)
        self.note(row, str(labels), scores.top1)
        if labels == 0:
            self.note(row, "retrieval@1", scores.retrieval)
            self.note(row, "domains told apart", scores.domain_top1)
        elif trained_with == labels:
            plain = transfer_eval(x, y, test_x, test_y)
            self.note(row, f"{labels}, synthetic probe", plain.top1)

    def measure(self, row: str, labels: int, train: Callable[[], nn.Module]) -> None:
        """Train an encoder, and judge it with every number of real labels that this training serves."""
        counts = REAL_LABELS if BY_LABELS[row] == (0,) else (labels,)
        if not all(str(count) in self.figures.get(row, {}) for count in counts):
            encoder = train()
            for count in counts:
                self.judge(row, count, encoder, trained_with=labels)


def run(bench: Bench) -> None:
    """Whatever is missing of a seed."""
    config = bench.config

    def classifier() -> CrossDomain:
        return make_method(config, cross_entropy, classifier=True)

    plain = {
        "cross entropy on synthetic": (classifier, 0.0),
        "cross entropy on all labels": (classifier, 0.0),
        "cross entropy on synthetic, 40 epochs": (classifier, 0.0),
        "SupCon on synthetic": (lambda: make_method(config, sup_con), 0.0),
        "SupCon on both, ignoring domains": (lambda: make_method(config, sup_con), None),
        "SimCLR on both without labels": (lambda: make_method(config, sim_clr), None),
        "cross-domain loss, labelled images alone": (lambda: make_method(config, OURS), 0.0),
        "combination, before matching, 40 epochs": (lambda: make_method(config, OURS), None),
    }
    for row, (make, unlabelled) in plain.items():
        for labels in BY_LABELS[row]:

            def train(row: str = row, labels: int = labels, make: Any = make, part: Any = unlabelled) -> nn.Module:
                return bench.train_on(bench.real(labels), labels, row, make(), unlabelled=part).encoder

            bench.measure(row, labels, train)
    supervised = bench.train_on(bench.real(0), 0, "cross entropy on synthetic", classifier(), unlabelled=0.0)
    adapted(bench, "cross entropy on synthetic, BatchNorm of the real domain", supervised.encoder)
    for labels in REAL_LABELS:
        matched(bench, labels, OURS, "combination")
        if labels in BY_LABELS["SupCon, classes matched"]:
            matched(bench, labels, ONE_DOMAIN, "SupCon")


def matched(bench: Bench, labels: int, loss: nn.Module, name: str) -> None:
    """Before classes are matched, after, and what a classifier makes of the classes that were found."""
    before, after, rival = f"{name}, before matching", f"{name}, classes matched", "cross entropy, classes matched"
    method = bench.train_on(bench.real(labels), labels, before, make_method(bench.config, loss))
    if name == "combination":
        bench.measure(before, labels, lambda: method.encoder)
        draw(bench, method.encoder, labels, "before")
    found = match(bench.config, method, bench.synthetic, bench.real(labels))
    assert found.labels is not None
    assert bench.train.labels is not None
    given = found.labels >= 0
    right = (found.labels[given] == bench.train.labels[given]).double().mean()
    bench.note(after, f"{labels}, classes right", float(right))
    bench.train_on(found, labels, after, method, more=True)
    bench.measure(after, labels, lambda: method.encoder)
    bench.measure(f"{after}, projections", labels, lambda: nn.Sequential(method.encoder, method.projector))
    if name == "combination":
        draw(bench, method.encoder, labels, "after")
    if name == "combination" and labels in BY_LABELS[rival]:
        classifier = make_method(bench.config, cross_entropy, classifier=True)
        bench.train_on(found, labels, rival, classifier, unlabelled=0.0)
        bench.measure(rival, labels, lambda: classifier.encoder)


def adapted(bench: Bench, row: str, encoder: nn.Module) -> None:
    """Synthetic images as the encoder was trained, real ones with the running statistics of real training images."""
    if "0" in bench.figures.get(row, {}):
        return
    x, y = extract_features(encoder, bench.synthetic, transform=EvalTransform(16))
    update_bn([EvalTransform(16)(images) for images in bench.train.images.split(256)], encoder)
    test_x, test_y = extract_features(encoder, bench.test, transform=EvalTransform(16))
    scores = transfer_eval(x, y, test_x, test_y)
    for column, value in (
        ("0", scores.top1),
        ("retrieval@1", scores.retrieval),
        ("domains told apart", scores.domain_top1),
    ):
        bench.note(row, column, value)


def draw(bench: Bench, encoder: nn.Module, labels: int, when: str) -> None:
    """The map without real labels."""
    path = bench.out / f"{when}-{bench.seed}.png"
    if labels == 0 and not path.is_file():
        draw_map(encoder, bench.synthetic, bench.test, path)


def table(seeds: list[dict[str, dict[str, float]]], columns: list[str]) -> None:
    """Per cent: mean and standard deviation over the seeds."""
    print(f"| | {' | '.join(columns)} | seeds |\n|---|" + "---:|" * (len(columns) + 1))
    for row in BY_LABELS:
        cells, most = [], 0
        for column in columns:
            values = [100 * figures[row][column] for figures in seeds if column in figures.get(row, {})]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
            most = max(most, len(values))
        if any(cells):
            print(f"| {row} | {' | '.join(cells)} | {most} |")
    print()


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-synthetic-to-real"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    benches = [Bench(words.out, seed) for seed in words.seeds]
    for bench in [] if words.table else benches:
        run(bench)
    seeds = [bench.figures for bench in benches]
    table(seeds, ["0", "1", "5"])
    table(seeds, ["0", "retrieval@1", "domains told apart", *(f"{k}, classes right" for k in REAL_LABELS)])
    table(seeds, [f"{k}, synthetic probe" for k in (1, 5)])
    print(setting("torch", "accelerate", "cl-train", "cl-augment", "cl-losses", "cl-models"))


if __name__ == "__main__":
    main()
