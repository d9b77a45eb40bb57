"""SimCLR v2, whole: learn from images, then from few labels, then let a smaller network learn from what came of it.

    python examples/simclr_v2.py                              handwritten digits, three minutes on two cores
    accelerate launch examples/simclr_v2.py --data DIR        the paper's recipe on DIR/train, DIR/val (class folders)

1. pretrain, without labels, with a projection head of three layers;
2. fine-tune from the first of these layers with each of --labels (a share, a number of each class, or a file of names);
3. distil each of these networks, on all images without labels, into one of --student-width times its channels.

Beside 2 and 3: the same networks from scratch on the same labels. Each stage has a folder in --out and goes on from its
own checkpoints, so the same command after an interruption repeats nothing.

Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, 2020, arXiv:2006.10029. Not in it here:
selective kernels, the memory of MoCo, and the step in which the network is first distilled into one of its own size
(--student-width 1 --tau 0.1).
"""

import copy
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from cl_augment import EvalTransform, LinearEvalAugment
from cl_models import ProjectionHead, save_encoder
from cl_train import (
    LARS,
    Classifier,
    ImageDataset,
    SimCLR,
    Tuned,
    distill,
    fine_tune,
    flag,
    lars_groups,
    make_accelerator,
    parse_flags,
    run_script,
    scaled_lr,
    use_all_cores,
    values_from_flags,
)
from finetune import labels_of
from simclr_imagenet import CIFAR10, DIGITS, IMAGENET, MAY_CHANGE, Config, learn, load, make_method
from torch import nn


@dataclass(frozen=True)
class V2(Config):
    """Every number of the recipe: those of pretraining, then those of the other stages."""

    labels: tuple[str, ...] = flag(("0.01", "0.1"), "which labels: a share, a number of each class, or a file of names")
    until: int = flag(1, "layers of the projection head that are fine-tuned (section 2: 1 of 3)")
    tune_epochs: int = flag(60, "epochs of fine-tuning (README: 60 for 1 %; section 3: 30 for 10 %)")
    tune_batch_size: int = flag(1024, "its batch (section 3)")
    tune_lr: float = flag(0.005, "its learning rate, times the square root of the batch (README)")
    student_width: float = flag(0.5, "channels of the student relative to the teacher's")
    distill_epochs: int = flag(400, "epochs of distillation (section 3)")
    distill_batch_size: int = flag(4096, "its batch (section 3)")
    distill_lr: float = flag(0.1, "its learning rate, times the square root of the batch (section 3)")
    tau: float = flag(1.0, "temperature of distillation (section 3: 1 for a smaller student, 0.1 for its equal)")
    label_weight: float = flag(0.0, "weight of the labels in distillation (section 2)")
    scratch: bool = flag(True, "whether to train from scratch beside each")


def v2(config: Config, **changes: Any) -> V2:
    """A recipe of version 1 with the later stages, and changes."""
    return V2(**{field.name: getattr(config, field.name) for field in fields(Config)} | changes)


PRESETS = {
    "imagenet": v2(
        IMAGENET, epochs=800, lr=0.1, lr_rule="sqrt", weight_decay=1e-4, warmup_epochs=40.0, projection_layers=3
    ),
    # ours, from here on
    "cifar10": v2(CIFAR10, projection_layers=3, tune_batch_size=128, distill_epochs=200, distill_batch_size=512),
    "digits": v2(
        DIGITS, labels=("1", "10"), projection_layers=3, tune_batch_size=64, tune_lr=0.05, distill_epochs=60,
        distill_batch_size=128,
    ),
}  # fmt: skip
# What each stage does not depend on, but by the networks that it is given.
TUNING = {"until", "tune_epochs", "tune_batch_size", "tune_lr"}
DISTILLING = {"student_width", "distill_epochs", "distill_batch_size", "distill_lr", "tau", "label_weight"}
CHOICES = {"labels", "scratch"}


def lars(network: nn.Module, batch: int, *, lr: float, weight_decay: float) -> LARS:
    """LARS with a learning rate that grows as the square root of the batch."""
    return LARS(lars_groups(network, weight_decay=weight_decay), scaled_lr(lr, batch, rule="sqrt"))


@dataclass(frozen=True)
class Stages:
    """What the stages share."""

    config: V2
    train: ImageDataset
    test: ImageDataset
    accelerator: Accelerator

    @property
    def out(self) -> Path:
        """Folder of all stages."""
        return Path(self.config.out or f"runs/{self.config.preset}-v2")

    def method(self, *, width: float = 1.0) -> tuple[SimCLR, LARS]:
        """Network, head and loss as initialised, and their optimiser."""
        torch.manual_seed(self.config.seed)
        with values_from_flags():
            return make_method(replace(self.config, width=self.config.width * width), self.train)

    def classifier(self, method: SimCLR) -> Classifier:
        """A classifier on the encoder and the first layers of its head."""
        assert isinstance(method.projector, ProjectionHead)
        with values_from_flags():
            return Classifier(
                method.encoder, len(self.train.classes or []), projector=method.projector, until=self.config.until
            )

    def pretrained(self) -> SimCLR:
        """Stage 1."""
        method, optimizer = self.method()
        config = replace(self.config, out=str(self.out / "pretrain"))
        learn(config, method, optimizer, self.train, self.accelerator, may_change=TUNING | DISTILLING | CHOICES)
        return method

    def tune(self, network: Classifier, word: str, name: str) -> Tuned:
        """Stage 2, or from scratch, with some labels."""
        optimizer = partial(lars, lr=self.config.tune_lr, weight_decay=0.0)
        settings = self.common(word, name, without=DISTILLING) | {"batch_size": self.config.tune_batch_size}
        epochs = self.config.tune_epochs
        return fine_tune(
            network, self.train, self.test, labels=labels_of(word), epochs=epochs, optimizer=optimizer, **settings
        )

    def distil(self, student: Classifier, teacher: Classifier, word: str, name: str) -> Tuned:
        """Stage 3."""
        return distill(
            student,
            self.train,
            self.test,
            teacher=teacher,
            temperature=self.config.tau,
            labels=labels_of(word),
            label_weight=self.config.label_weight,
            epochs=self.config.distill_epochs,
            batch_size=self.config.distill_batch_size,
            optimizer=partial(lars, lr=self.config.distill_lr, weight_decay=1e-4),
            **self.common(word, name, without=TUNING),
        )

    def common(self, word: str, name: str, *, without: set[str]) -> dict[str, Any]:
        """What fine-tuning and distillation are told alike."""
        config, test_transform = self.config, EvalTransform(self.config.image_size)
        return {
            # a flipped digit is another one
            "transform": test_transform if config.preset == "digits" else LinearEvalAugment(config.image_size),
            "test_transform": test_transform,
            "seed": config.seed,
            "out": self.out / f"{Path(word).name}-{name.replace(', ', '-').replace(' ', '-')}",
            "resume": config.resume if config.resume in ("auto", "never") else "auto",  # a path is of stage 1
            "chunk_size": config.chunk_size,
            "batchnorm": config.batchnorm,
            "compile": config.compile,
            "checkpoint_every": config.checkpoint_every,
            "workers": config.workers,
            "max_steps": config.max_steps,
            "max_bad_images": config.max_bad_images,
            "on_nonfinite": config.on_nonfinite,
            "trackers": config.trackers,
            "may_change": (MAY_CHANGE | set(config.may_change)) - without - CHOICES,
            "config": {k: value for k, value in asdict(config).items() if k not in without | CHOICES},
            "accelerator": self.accelerator,
            "title": f"{word} of labels, {name}",
        }


def main() -> None:
    """All stages, then a table."""
    config = parse_flags(
        PRESETS, choose=lambda given: "imagenet" if given.get("data") else "digits", description=__doc__
    )
    use_all_cores()
    accelerator = make_accelerator(config.mixed_precision)
    train, test = load(config, accelerator)
    stages = Stages(config, train, test, accelerator)
    table: dict[str, dict[str, float]] = {}
    pretrained = stages.pretrained()
    for word in config.labels:
        teacher = stages.tune(stages.classifier(copy.deepcopy(pretrained)), word, "fine-tuned")
        small = stages.classifier(stages.method(width=config.student_width)[0])
        student = stages.distil(copy.deepcopy(small), teacher.network, word, "student, distilled")
        found = {"pretrained, fine-tuned": teacher, "student, distilled": student}
        if config.scratch:
            found["from scratch"] = stages.tune(stages.classifier(stages.method()[0]), word, "from scratch")
            found["student, from scratch"] = stages.tune(small, word, "student, from scratch")
        table[word] = {name: each.scores.top1 for name, each in found.items()}
        if accelerator.is_main_process:
            for each in found.values():
                save_encoder(each.network, each.run.out / "classifier.safetensors")
    if accelerator.is_main_process:
        (stages.out / "results.json").write_text(json.dumps(table, indent=2) + "\n")
        names = list(next(iter(table.values())))
        print(f"\n| labels | {' | '.join(names)} |\n|---|" + "---:|" * len(names))
        for word, row in table.items():
            print(f"| {word} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
        print(f"\nfigures: top-1; logs, checkpoints and networks: {stages.out}")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
