"""Few labels for a run of simclr_imagenet.py: its whole network learns from 1 % and from 10 % of them.

    python examples/finetune.py                                           the run in runs/digits, a minute on two cores
    accelerate launch examples/finetune.py --run runs/imagenet --labels 1percent.txt 10percent.txt
    accelerate launch examples/finetune.py --run runs/imagenet --preset v1

Each of `--labels` is a share of all images (0.01), how many of each class (13), or a file that lists images, such as
the published ones for ImageNet. Beside each: the same network from scratch. `RUN/tuned-...` receives logs, checkpoints,
from which the same command goes on, and `classifier.safetensors`.

v2 fine-tunes from the first layer of the projection head by LARS (arXiv:2006.10029; 60 epochs for 1 %, the authors take
--epochs 30 for 10 % and more), v1 the encoder by SGD (arXiv:2002.05709, App. B.5).
"""

import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from cl_augment import EvalTransform, LinearEvalAugment
from cl_models import ProjectionHead, load_encoder, save_encoder
from cl_train import (
    LARS,
    Classifier,
    InputError,
    fine_tune,
    flag,
    lars_groups,
    make_accelerator,
    parse_flags,
    readable,
    run_script,
    scaled_lr,
    use_all_cores,
    values_from_flags,
)
from simclr_imagenet import Config, config_of, load, make_encoder
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Flags:
    """Every number of the recipe. The defaults are SimCLR v2's on ImageNet."""

    preset: str
    run: str = flag("runs/digits", "folder of a run of simclr_imagenet.py")
    labels: tuple[str, ...] = flag(("0.01", "0.1"), "which labels: a share, a number of each class, or a file of names")
    until: int = flag(1, "layers of the projection head that stay (v2: 1, v1: 0)")
    epochs: int = flag(60, "passes over the labelled images")
    batch_size: int = flag(1024, "images per step over all processes; at most all are taken")
    optimizer: Literal["lars", "sgd"] = flag("lars", "LARS, or SGD with Nesterov momentum")
    lr: float = flag(0.005, "learning rate, times the square root of the batch (LARS) or batch / 256 (SGD)")
    scratch: bool = flag(True, "whether to train the same network from scratch too")
    seed: int = flag(0, "seed of the draw of labels, of order and views")
    workers: int | None = flag(None, "processes that read images from files; default: a core each, at most 8")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag("auto", "auto: bf16 where the device has it")
    max_steps: int | None = flag(None, "stop each training after so many steps")


V2 = Flags("v2")
V1 = replace(V2, preset="v1", until=0, batch_size=4096, optimizer="sgd", lr=0.05)
SMALL = replace(V2, preset="small", batch_size=64, optimizer="sgd", lr=0.1, epochs=100)  # ours: for few, small images


def labels_of(word: str) -> int | float | Path:
    """What `fine_tune` takes, from a word of the command line."""
    if word.isdecimal():
        return int(word)
    try:
        return float(word)
    except ValueError:
        return Path(word)


def make_network(flags: Flags, config: Config, *, channels: int, classes: int) -> tuple[Classifier, Classifier]:
    """The network with the weights of the run, and the same with those it began with."""
    torch.manual_seed(config.seed)
    encoder = make_encoder(config, channels=channels)
    width: int = encoder.feature_dim  # type: ignore[assignment]
    projector = ProjectionHead(width, width, config.projection_dim, layers=config.projection_layers)
    network = Classifier(encoder, classes, projector=projector, until=flags.until)
    scratch = copy.deepcopy(network)
    parts: dict[str, nn.Module] = {"encoder": encoder, "projector": projector}
    for name, module in parts.items():
        file = Path(flags.run) / f"{name}.safetensors"
        if not file.is_file():
            raise InputError(f"`--run` must be the folder of a finished run of simclr_imagenet.py, there is no {file}.")
        load_encoder(module, file)
    return network, scratch


def make_optimizer(network: nn.Module, batch_size: int, *, flags: Flags) -> Optimizer:
    """As `--optimizer` and `--lr` say, for a batch."""
    if flags.optimizer == "lars":
        return LARS(lars_groups(network, weight_decay=0.0), scaled_lr(flags.lr, batch_size, rule="sqrt"))
    return torch.optim.SGD(network.parameters(), scaled_lr(flags.lr, batch_size), momentum=0.9, nesterov=True)


def main() -> None:
    """Fine-tune on each choice of labels, then print."""
    flags = parse_flags(
        {f.preset: f for f in (V2, V1, SMALL)},
        choose=lambda given: "small" if config_of(given.get("run", V2.run)).preset == "digits" else V2.preset,
        description=__doc__,
    )
    use_all_cores()
    accelerator = make_accelerator(flags.mixed_precision)
    config = config_of(flags.run)
    train, test = load(config, accelerator)
    transform = EvalTransform(config.image_size)
    table: dict[str, dict[str, float]] = {}
    for word in flags.labels:
        channels = train.read(readable(train, 1)[0]).shape[0]
        with values_from_flags():
            network, scratch = make_network(flags, config, channels=channels, classes=len(train.classes or []))
        for name, each in {"from scratch": scratch, "fine-tuned": network}.items():
            if each is scratch and not flags.scratch:
                continue
            out = Path(flags.run) / f"tuned-{Path(word).name}-{name.replace(' ', '-')}"
            found = fine_tune(
                each,
                train,
                test,
                labels=labels_of(word),
                transform=transform if config.preset == "digits" else LinearEvalAugment(config.image_size),
                test_transform=transform,
                epochs=flags.epochs,
                batch_size=flags.batch_size,
                optimizer=partial(make_optimizer, flags=flags),
                seed=flags.seed,
                out=out,
                may_change={"workers", "max_steps", "labels", "run", "scratch"},
                workers=flags.workers,
                max_steps=flags.max_steps,
                max_bad_images=config.max_bad_images,
                config=asdict(flags),
                accelerator=accelerator,
                title=f"{word} of labels, {name}",
            )
            table.setdefault(word, {})[name] = found.scores.top1
            if accelerator.is_main_process:
                save_encoder(each, out / "classifier.safetensors")
    if accelerator.is_main_process:
        names = list(next(iter(table.values())))
        print(f"\n| labels | {' | '.join(names)} |\n|---|" + "---:|" * len(names))
        for word, found_top1 in table.items():
            print(f"| {word} | " + " | ".join(f"{found_top1[name]:.3f}" for name in names) + " |")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
