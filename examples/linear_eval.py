"""What a run of simclr_imagenet.py or byol_imagenet.py has learnt, judged by the papers' protocols.

    python examples/linear_eval.py                                    the run in runs/digits, half a minute on two cores
    accelerate launch examples/linear_eval.py --runs runs/imagenet --judges linear knn
    python examples/linear_eval.py --runs runs/seed-0 runs/seed-1 runs/seed-2          mean and deviation over the seeds

linear    the paper's: a linear layer by SGD on augmented images, 90 epochs (arXiv:2002.05709, App. B.6)
probe     the same on features that are computed once, learning rate and decay chosen on held-out training images
logistic  the papers' for transfer: logistic regression, one of 45 penalties chosen likewise (App. B.8.1)
knn       200 weighted nearest neighbours, nothing is trained
few       logistic regression with 1 % and 10 % of the labels

The table gives top-1 in per cent: of one run with half of Wilson's 95 % interval over the test images, of several with
the standard deviation over the runs; also for raw pixels and the encoder as it began, which have learnt nothing. Each
run's own is in its `evaluation.json`.
"""

import copy
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import byol_imagenet
import simclr_imagenet
import torch
from accelerate import Accelerator
from cl_augment import EvalTransform, LinearEvalAugment
from cl_models import load_encoder
from cl_train import (
    FewLabelScores,
    ImageDataset,
    InputError,
    Scores,
    extract_features,
    few_label_eval,
    flag,
    knn_eval,
    linear_eval,
    linear_probe,
    logistic_eval,
    make_accelerator,
    parse_flags,
    readable,
    run_script,
    use_all_cores,
    values_from_flags,
)
from simclr_imagenet import load, make_encoder
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Flags:
    """Which runs, and by what they are judged."""

    runs: tuple[str, ...] = flag(
        ("runs/digits",), "folders of runs of simclr_imagenet.py or byol_imagenet.py that differ in seed"
    )
    judges: tuple[Literal["linear", "probe", "logistic", "knn", "few"], ...] = flag(
        ("linear", "probe", "logistic", "knn", "few"), "by what to judge; all but linear keep all features in memory"
    )
    epochs: int | None = flag(None, "epochs of linear; default the run's --eval-epochs")
    resume: Literal["auto", "never"] = flag("auto", "auto: go on with linear where it was; never: begin anew")
    workers: int | None = flag(None, "processes that read images from files; default: a core each, at most 8")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag("auto", "auto: bf16 where the device has it")
    max_steps: int | None = flag(None, "stop the training of linear after so many steps")


def config_of(run: str) -> Any:
    """The settings of a run of either script, whose names are the same but for what is the method's."""
    try:
        return simclr_imagenet.config_of(run)
    except InputError as error:
        try:
            return byol_imagenet.config_of(run)
        except InputError:
            raise error from None


class Pixels(nn.Module):
    """The image itself as its features, of at most 32 x 32 pixels."""

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        self.size = min(image_size, 32)
        self.feature_dim = channels * self.size**2

    def forward(self, views: Tensor) -> Tensor:
        """(n, feature_dim)."""
        return functional.adaptive_avg_pool2d(views, self.size).flatten(1)


def encoders_of(run: Path, config: Any, train: ImageDataset) -> dict[str, nn.Module]:
    """By the names of their rows."""
    channels = train.read(readable(train, 1)[0]).shape[0]
    torch.manual_seed(config.seed)  # what the run began with
    encoder = make_encoder(config, channels=channels)
    untrained = copy.deepcopy(encoder)
    file = run / "encoder.safetensors"
    if not file.is_file():
        raise InputError(f"`--runs` must be folders of finished runs of a pretraining script, there is no {file}.")
    with values_from_flags():
        load_encoder(encoder, file)
    return {
        "raw pixels": Pixels(config.image_size, channels),
        "randomly initialised encoder": untrained,
        f"{'BYOL' if isinstance(config, byol_imagenet.Config) else 'SimCLR'} encoder": encoder,
    }


def judge(
    encoder: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    config: Any,
    flags: Flags,
    accelerator: Accelerator,
    *,
    out: Path,
) -> dict[str, Scores | FewLabelScores]:
    """Scores by the names of their columns."""
    found: dict[str, Scores | FewLabelScores] = {}
    transform = EvalTransform(config.image_size)
    if "linear" in flags.judges:
        found["linear"] = linear_eval(
            encoder,
            train,
            test,
            transform=LinearEvalAugment(config.image_size) if config.preset != "digits" else transform,
            test_transform=transform,
            epochs=flags.epochs or config.eval_epochs,
            batch_size=config.eval_batch_size,
            base_lr=config.eval_lr,
            seed=config.seed,
            workers=flags.workers,
            out=out,
            resume=flags.resume,
            max_steps=flags.max_steps,
            max_bad_images=config.max_bad_images,
            accelerator=accelerator,
            title=out.name,
        )
    if set(flags.judges) <= {"linear"} or not accelerator.is_main_process:
        return found
    encoder.to(accelerator.device)
    parts = [extract_features(encoder, data, transform=transform, workers=flags.workers) for data in (train, test)]
    if train.labels is None or test.labels is None:
        raise InputError("`--runs` must be of images with labels.")
    train_x, train_y, test_x, test_y = (part.to(accelerator.device) for pair in parts for part in pair)  # type: ignore[union-attr]
    features = train_x, train_y, test_x, test_y
    if "probe" in flags.judges:
        found["probe"] = linear_probe(*features)
    if "logistic" in flags.judges:
        found["logistic"] = logistic_eval(*features)
    if "knn" in flags.judges:
        found["kNN"] = knn_eval(*features)
    if "few" in flags.judges:
        for share in (0.01, 0.1):
            found[f"{100 * share:g} % of labels"] = few_label_eval(*features, labels=share, draws=5)
    return found


def cell(scores: list[Scores | FewLabelScores]) -> str:
    """One run's top-1 with how far it would be off on other images, or the mean of several with their deviation."""
    values = [100 * each.top1 for each in scores]
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    low, high = scores[0].interval if isinstance(scores[0], Scores) else scores[0].draws[0].interval
    return f"{values[0]:.1f} ± {50 * (high - low):.1f}"


def main() -> None:
    """Judge each run, then print."""
    flags = parse_flags({"paper": Flags()}, choose=lambda given: "paper", description=__doc__)
    use_all_cores()
    accelerator = make_accelerator(flags.mixed_precision)
    table: dict[str, dict[str, list[Scores | FewLabelScores]]] = {}
    configs = [config_of(run) for run in flags.runs]
    if len(set(map(type, configs))) > 1:
        raise InputError("`--runs` must be of one method, those of SimCLR and BYOL are judged one after the other.")
    for run, config in zip(flags.runs, configs, strict=True):
        train, test = load(config, accelerator)
        for row, encoder in encoders_of(Path(run), config, train).items():
            out = Path(run) / f"linear-{row.replace(' ', '-')}"
            for column, scores in judge(encoder, train, test, config, flags, accelerator, out=out).items():
                table.setdefault(row, {}).setdefault(column, []).append(scores)
    if accelerator.is_main_process:
        show(table, flags)
    accelerator.end_training()


def show(table: Mapping[str, Mapping[str, list[Scores | FewLabelScores]]], flags: Flags) -> None:
    """Print the table, and keep its figures beside the runs."""
    names = list(next(iter(table.values())))
    print(f"\n| top-1, % | {' | '.join(names)} |\n|---|" + "---:|" * len(names))
    for row, columns in table.items():
        print(f"| {row} | " + " | ".join(cell(columns[name]) for name in names) + " |")
    for number, run in enumerate(flags.runs):
        figures = {row: {name: columns[name][number].top1 for name in names} for row, columns in table.items()}
        (Path(run) / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
