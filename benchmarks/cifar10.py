"""What representations of CIFAR-10 are worth: SimCLR and BYOL beside pixels, chance and labels; SimCLR v2.

    hatch run bench:cifar10 --data DIR                 # over two hours a seed on two cores; goes on where it was
    hatch run bench:cifar10 --data DIR --seeds 0       # one seed
    hatch run bench:cifar10 --data DIR --table         # the tables of what has been measured so far

ResNet-18 with a quarter of the channels and the CIFAR stem, bf16. Every figure is kept in `OUT/figures.json` when it is
there, by seed, row and column; checkpoints are in folders beside it.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cl_augment import EvalTransform, LinearEvalAugment, SimCLRAugment
from cl_losses import NTXentLoss
from cl_models import BYOLHead, ProjectionHead, resnet18
from cl_train import (
    BYOL,
    LARS,
    Classifier,
    Method,
    PretrainResult,
    SimCLR,
    Tuned,
    distill,
    extract_features,
    few_label_eval,
    fine_tune,
    knn_eval,
    lars_groups,
    linear_eval,
    linear_probe,
    load_cifar10,
    make_accelerator,
    pretrain,
    scaled_lr,
)
from measure import setting
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

WIDTH, BATCH, EPOCHS, DISTILL_EPOCHS = 0.25, 256, 20, 10
SHARES = (0.01, 0.1)
SPEED = "images/s", "minutes"
Figures = dict[str, dict[str, dict[str, float]]]


class Bench:
    """Data, and the figures that there are: seed -> row -> column -> number."""

    def __init__(self, data: Path, out: Path) -> None:
        self.out, self.file = out, out / "figures.json"
        self.train, self.test = load_cifar10(data)
        self.accelerator = make_accelerator("bf16")
        self.transforms = {"transform": LinearEvalAugment(32), "test_transform": EvalTransform(32)}
        self.figures: Figures = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def measure(self, seed: int, row: str, columns: tuple[str, ...], call: Callable[[], tuple[float, ...]]) -> None:
        """Note figures that are not there yet."""
        kept = self.figures.setdefault(str(seed), {}).setdefault(row, {})
        if not kept.keys() >= set(columns):
            kept |= dict(zip(columns, call(), strict=True))
            self.out.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.figures, indent=2) + "\n")
            print(f"seed {seed}, {row}: " + ", ".join(f"{name} {kept[name]:.4g}" for name in columns), flush=True)


def network(seed: int, *, width: float = WIDTH) -> tuple[nn.Module, ProjectionHead]:
    """Encoder and a head of three layers, as they begin."""
    torch.manual_seed(seed)
    encoder = resnet18(width=width, stem="cifar")
    return encoder, ProjectionHead(encoder.feature_dim, encoder.feature_dim, 128, layers=3)


def speed(run: PretrainResult, batch: int) -> tuple[float, float]:
    """Median images/s, which does not see pauses, and how many minutes all steps take at that rate."""
    rate = statistics.median(entry["images_per_second"] for entry in run.history)
    return rate, run.steps * batch / rate / 60


def nesterov(network: nn.Module, batch: int, *, lr: float = 0.1, weight_decay: float = 0.0) -> Optimizer:
    """SGD as for networks that learn from labels."""
    return torch.optim.SGD(
        network.parameters(), scaled_lr(lr, batch), momentum=0.9, nesterov=True, weight_decay=weight_decay
    )


def learn(bench: Bench, seed: int) -> SimCLR:
    """SimCLR, or the end of it."""
    encoder, head = network(seed)
    augment = SimCLRAugment(32, strength=0.5, blur=False)
    method = SimCLR(encoder, head, augment, NTXentLoss(temperature=0.5), num_classes=10)
    run(bench, seed, "SimCLR", method, LARS(lars_groups(method), scaled_lr(1.0, BATCH), weight_decay=1e-4))
    return method


def bootstrap(bench: Bench, seed: int) -> None:
    """BYOL with the views of SimCLR, or the end of it."""
    encoder, _ = network(seed)
    augment = SimCLRAugment(32, strength=0.5, blur=False)
    projector, predictor = BYOLHead(encoder.feature_dim, 512, 128), BYOLHead(128, 512, 128)
    method = BYOL(encoder, projector, predictor, augment, 0.97, num_classes=10)
    rate = scaled_lr(2.0, BATCH)
    run(bench, seed, "BYOL", method, LARS(lars_groups(method), rate, weight_decay=1e-6, lr_in_momentum=False))


def run(bench: Bench, seed: int, name: str, method: Method, optimizer: Optimizer) -> None:
    """Pretrain."""
    result = pretrain(
        method,
        bench.train,
        epochs=EPOCHS,
        batch_size=BATCH,
        out=bench.out / f"{name.lower()}-{seed}",
        optimizer=optimizer,
        warmup_epochs=2,
        seed=seed,
        keep_every=5,
        compile="views",
        accelerator=bench.accelerator,
    )
    bench.measure(seed, f"{name}, {EPOCHS} epochs", SPEED, lambda: speed(result, BATCH))


def encoder_at(bench: Bench, seed: int, epoch: int, name: str = "SimCLR") -> nn.Module:
    """The encoder after some epochs of pretraining."""
    encoder, _ = network(seed)
    step = epoch * (len(bench.train) // BATCH)
    weights = load_file(
        bench.out / f"{name.lower()}-{seed}" / "checkpoints" / f"step-{step:08d}" / "method.safetensors"
    )
    encoder.load_state_dict(
        {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    )
    return encoder


def features(bench: Bench, encoder: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of the training images, then of the test images, each seen whole."""
    parts = [extract_features(encoder, data, transform=EvalTransform(32)) for data in (bench.train, bench.test)]
    (train_x, train_y), (test_x, test_y) = parts
    assert train_y is not None
    assert test_y is not None
    return train_x, train_y, test_x, test_y


def judge(bench: Bench, seed: int, row: str, encoder: nn.Module) -> None:
    """Linear, kNN, 1 % and 10 % of labels, on features that are computed once."""
    columns = ("linear", "kNN", *(f"{100 * share:g} %" for share in SHARES))

    def call() -> tuple[float, ...]:
        known = features(bench, encoder)
        few = [few_label_eval(*known, labels=share, draws=3).top1 for share in SHARES]
        return linear_probe(*known, seed=seed).top1, knn_eval(*known).top1, *few

    bench.measure(seed, row, columns, call)


def supervised(bench: Bench, seed: int) -> None:
    """The same network from labels, for as many epochs; its features judged likewise."""

    def train() -> Tuned:
        return fine_tune(
            Classifier(network(seed)[0], 10),
            bench.train,
            bench.test,
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=lambda network, batch: nesterov(network, batch, weight_decay=5e-4),
            warmup_epochs=1.0,
            seed=seed,
            out=bench.out / f"supervised-{seed}",
            accelerator=bench.accelerator,
            **bench.transforms,  # type: ignore[arg-type]
        )

    found = train()  # or what its last checkpoint holds
    row = f"supervised, {EPOCHS} epochs"
    bench.measure(seed, row, ("its own", *SPEED), lambda: (found.scores.top1, *speed(found.run, BATCH)))
    judge(bench, seed, row, found.network.encoder)


def protocol(bench: Bench, seed: int, epochs: int) -> None:
    """The paper's linear evaluation: on the features that the probe had, and as written, with crop and flip."""
    encoder = encoder_at(bench, seed, EPOCHS)

    def with_views() -> tuple[float, ...]:
        scores = linear_eval(
            encoder,
            bench.train,
            bench.test,
            epochs=epochs,
            batch_size=BATCH,
            seed=seed,
            out=bench.out / f"linear-{seed}",
            accelerator=bench.accelerator,
            **bench.transforms,  # type: ignore[arg-type]
        )
        return (scores.top1,)

    row = f"SimCLR, {EPOCHS} epochs"
    bench.measure(seed, row, ("SGD, same features",), lambda: (sgd(*features(bench, encoder), seed=seed),))
    bench.measure(seed, row, (f"linear_eval, {epochs} epochs",), with_views)


def sgd(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int, epochs: int = 90) -> float:
    """Top-1 of a layer that torch trains by the protocol's numbers; nothing of cl-train is in it."""
    torch.manual_seed(seed)
    layer = nn.Linear(train_x.shape[1], 10)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1 * BATCH / 256, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(train_x) // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(len(train_x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(train_x[rows]), train_y[rows]).backward()
            optimizer.step()
            schedule.step()
    return float((layer(test_x).argmax(1) == test_y).double().mean())


def of_share(share: float) -> tuple[str, str]:
    """Columns of what is trained on a share of the labels."""
    return f"{100 * share:g} %", f"minutes, {100 * share:g} %"


def tune(bench: Bench, seed: int, share: float, row: str, classifier: Classifier) -> Classifier:
    """Fine-tune on some labels, or read what it became."""
    settings: dict[str, Any] = bench.transforms | {"accelerator": bench.accelerator, "seed": seed}
    found = fine_tune(
        classifier,
        bench.train,
        bench.test,
        labels=share,
        epochs=100 if share < 0.05 else 30,
        batch_size=64,
        optimizer=nesterov,
        out=bench.out / f"{row} {share}-{seed}",
        **settings,
    )
    bench.measure(seed, row, of_share(share), lambda: (found.scores.top1, speed(found.run, 64)[1]))
    return classifier


def version_2(bench: Bench, seed: int, method: SimCLR, *, distilled: bool) -> None:
    """Fine-tuning from the first layer of the head and from the encoder, from scratch, and distillation if asked."""
    assert isinstance(method.projector, ProjectionHead)
    for share in SHARES:
        teacher = None
        for until, row in ((1, "fine-tuned from the first head layer"), (0, "fine-tuned from the encoder")):
            pretrained = Classifier(
                copy.deepcopy(method.encoder), 10, projector=copy.deepcopy(method.projector), until=until
            )
            tuned = tune(bench, seed, share, row, pretrained)
            teacher = tuned if until == 1 else teacher
        tune(bench, seed, share, "from scratch", Classifier(network(seed)[0], 10))
        half = network(seed, width=WIDTH / 2)[0]
        tune(bench, seed, share, "half-width student, from scratch", Classifier(half, 10))
        if not distilled:
            continue
        student = Classifier(network(seed, width=WIDTH / 2)[0], 10)
        assert teacher is not None
        bench.measure(
            seed,
            "half-width student, distilled",
            of_share(share),
            lambda: taught(bench, seed, student, teacher, f"distilled {share}-{seed}"),  # noqa: B023
        )


def taught(bench: Bench, seed: int, student: Classifier, teacher: Classifier, folder: str) -> tuple[float, float]:
    """Top-1 of a student, and its minutes."""
    found = distill(
        student,
        bench.train,
        bench.test,
        teacher=teacher,
        epochs=DISTILL_EPOCHS,
        batch_size=BATCH,
        optimizer=lambda network, batch: nesterov(network, batch, weight_decay=5e-4),
        warmup_epochs=1.0,
        seed=seed,
        out=bench.out / folder,
        accelerator=bench.accelerator,
        **bench.transforms,  # type: ignore[arg-type]
    )
    return found.scores.top1, speed(found.run, BATCH)[1]


def table(figures: Figures, rows: list[str], columns: list[str]) -> None:
    """Per cent, but for rates and minutes: mean and standard deviation over the seeds, whose number stands beside."""
    print(f"| | {' | '.join(columns)} | seeds |\n|---|" + "---:|" * (len(columns) + 1))
    for row in rows:
        cells, seeds = [], 0
        for column in columns:
            values = [by_row[row][column] for by_row in figures.values() if column in by_row.get(row, {})]
            plain = column.startswith(SPEED)
            mean = f"{(1 if plain else 100) * statistics.mean(values):.{0 if plain else 1}f}" if values else ""
            spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 and not plain else ""
            cells.append(mean + spread)
            seeds = max(seeds, len(values))
        print(f"| {row} | {' | '.join(cells)} | {seeds} |")
    print()


def show(figures: Figures, as_written: str) -> None:
    """The tables: protocols, linear ones beside each other, few labels."""
    few = [of_share(share)[0] for share in SHARES]
    pretrained = [f"SimCLR, {epoch} epochs" for epoch in (5, 10, EPOCHS)]
    bootstrapped = [f"BYOL, {epoch} epochs" for epoch in (5, 10, EPOCHS)]
    names = ["raw pixels", "randomly initialised encoder", *pretrained, *bootstrapped, f"supervised, {EPOCHS} epochs"]
    table(figures, names, ["linear", "kNN", *few, "its own", *SPEED])
    one = {seed: rows for seed, rows in figures.items() if as_written in rows.get(pretrained[-1], {})}
    table(one, [pretrained[-1]], ["linear", "SGD, same features", as_written])  # of one seed, so that they compare
    rows = ["from scratch", "fine-tuned from the encoder", "fine-tuned from the first head layer"]
    rows += ["half-width student, from scratch", "half-width student, distilled"]
    table(figures, rows, [column for share in SHARES for column in of_share(share)])


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that load_cifar10 takes")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-cifar10"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--linear-epochs", type=int, default=10, help="of the paper's protocol, with the first seed")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    words = parser.parse_args()
    torch.set_num_threads(2)
    bench = Bench(words.data, words.out)
    for seed in [] if words.table else words.seeds:
        method = learn(bench, seed)
        judge(bench, 0, "raw pixels", nn.Flatten())
        judge(bench, seed, "randomly initialised encoder", network(seed)[0])
        bootstrap(bench, seed)
        for name in ("SimCLR", "BYOL"):
            for epoch in (5, 10, EPOCHS):
                judge(bench, seed, f"{name}, {epoch} epochs", encoder_at(bench, seed, epoch, name))
        version_2(bench, seed, method, distilled=seed == words.seeds[0])
        supervised(bench, seed)
    if not words.table:
        protocol(bench, words.seeds[0], words.linear_epochs)
    show(bench.figures, f"linear_eval, {words.linear_epochs} epochs")
    print(setting("torch", "accelerate", "cl-train", "cl-augment", "cl-losses", "cl-models"))


if __name__ == "__main__":
    main()
