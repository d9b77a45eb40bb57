"""BYOL, whole: learn features from images without labels, then judge them by a linear classifier.

    python examples/byol_imagenet.py                         handwritten digits, some minutes on two cores
    accelerate launch examples/byol_imagenet.py --data DIR   the paper's recipe on DIR/train, DIR/val (class folders)

One process, many, or many machines differ by this line only:

    accelerate launch examples/byol_imagenet.py --data DIR
    accelerate launch --multi_gpu --num_processes 8 examples/byol_imagenet.py --data DIR
    accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank RANK --main_process_ip HOST \
        --main_process_port 29500 examples/byol_imagenet.py --data DIR

Under Slurm: examples/slurm.sh. Where a batch does not fit: --chunk-size auto. Settings in a file: --config FILE.
`--encoder timm:NAME` pretrains a network of timm's, such as timm:vit_tiny_patch16_224, from scratch at --image-size.

The step (views, a forward of each, loss) is cl_train/_step.py, with the method in cl_train/_byol.py.

Where this differs from the authors' code: an epoch ends with its last whole batch, so 100 epochs of ImageNet take
31,200 steps, not 31,278; crops and colours follow torchvision's laws, and no mean and deviation are subtracted; the
network is torchvision's, with its initialisation; the target begins as a copy of the online network, theirs with random
weights of its own, between which they find no difference.
"""

import copy
import difflib
import json
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from cl_augment import (
    BYOLAugment,
    EvalTransform,
    LinearEvalAugment,
    RandomStroke,
    RandomWarp,
    SimCLRAugment,
    TwoViewAugment,
    TwoViews,
)
from cl_models import (
    BYOLHead,
    as_encoder,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet200,
    save_encoder,
)
from cl_train import (
    BYOL,
    LARS,
    ImageDataset,
    InputError,
    PretrainResult,
    Subset,
    extract_features,
    few_label_eval,
    flag,
    lars_groups,
    linear_eval,
    load_cifar10,
    load_digits,
    load_folders,
    make_accelerator,
    parse_flags,
    plot_history,
    plot_map,
    plot_neighbours,
    plot_views,
    pretrain,
    readable,
    run_script,
    scaled_lr,
    use_all_cores,
    values_from_flags,
)
from torch import Tensor, nn

RESNETS = {make.__name__: make for make in (resnet18, resnet34, resnet50, resnet101, resnet152, resnet200)}


@dataclass(frozen=True)
class Config:
    """Every number of the recipe. The defaults are the paper's 100 epochs on ImageNet, arXiv:2006.07733."""

    preset: str
    data: str | None = flag(None, "folder with train/ and val/; without it: scikit-learn's digits")
    out: str | None = flag(None, "folder of the run; default runs/byol-<preset>")
    epochs: int = flag(100, "passes over the images (300 epochs: 72.5 % top-1, section 5; 1000: 74.3, Table 1)")
    batch_size: int = flag(4096, "images per step over all processes (section 3.3)")
    chunk_size: int | Literal["auto"] | None = flag(None, "images of a process in the network at once; auto: what fits")
    accumulate: int = flag(1, "equal parts of a step with a loss each: what chunks are too")
    batchnorm: Literal["sync", "local"] = flag("sync", "statistics over a chunk of all processes, or of each its own")
    image_size: int = flag(224, "side of the views in pixels (App. B)")
    encoder: str = flag("resnet50", f"network: {', '.join(RESNETS)} or timm:NAME (section 3.3: resnet50)")
    width: float = flag(1.0, "channels of a ResNet relative to the usual (section 3.3: 1; Table 1: 2, 4)")
    stem: Literal["imagenet", "cifar"] = flag("imagenet", "first layers of a ResNet")
    projection_hidden: int = flag(4096, "hidden width of projector and predictor (section 3.3)")
    projection_dim: int = flag(256, "width of projections and predictions (section 3.3)")
    decay: float = flag(0.99, "weight of the target's old value, at the first step (section 3.3)")
    lr: float = flag(0.45, "learning rate of LARS, times what --lr-rule says (section 3.3)")
    lr_rule: Literal["linear", "sqrt"] = flag("linear", "batch / 256, or the square root of the batch")
    weight_decay: float = flag(1e-6, "of all but BatchNorm and biases (section 3.3)")
    warmup_epochs: float = flag(10.0, "epochs of linear warm-up before the cosine (section 3.3)")
    eval_epochs: int = flag(80, "epochs of linear evaluation (App. C.1)")
    eval_batch_size: int = flag(1024, "its batch (App. C.1)")
    eval_lr: float = flag(0.2, "its learning rate, times batch / 256 (the code; App. C.1 tries 0.05 to 0.4)")
    baseline: bool = flag(True, "whether to judge a randomly initialised encoder beside the trained one")
    seed: int = flag(0, "seed of weights, order and views")
    resume: str = flag("auto", "auto: go on from the run in --out; never: begin anew; or the path of a checkpoint")
    workers: int | None = flag(None, "processes that read images from files; default: a core each, at most 8")
    verify: bool = flag(True, "whether to open every image file before the run")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag("auto", "auto: bf16 where the device has it")
    compile: Literal["no", "views", "all"] = flag("no", "torch.compile what makes the views, or the network too")
    checkpoint_every: int | None = flag(None, "steps between checkpoints, besides those at the end of each epoch")
    keep_every: int | None = flag(None, "keep the checkpoints of every so many epochs, besides the newest two")
    keep_best: str | None = flag(None, "keep the checkpoint with the highest value of a figure of the log: probe_top1")
    on_nonfinite: Literal["stop", "skip"] = flag("stop", "what to do with a step whose numbers are not finite")
    health: Literal["warn", "stop", "off"] = flag("warn", "what to do when a look at an epoch's end shows a run is ill")
    max_bad_images: float = flag(0.0, "share of images that may be unreadable; above 0 they are left out")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = flag((), "where the log is sent too")
    max_steps: int | None = flag(None, "stop each phase after so many steps")
    may_change: tuple[str, ...] = flag((), "settings that may differ from the checkpoint's, such as processes")


# What a run that goes on, or is only judged again, may have otherwise.
MAY_CHANGE = {
    *("data", "out", "resume", "may_change", "workers", "verify", "max_steps"),
    *("checkpoint_every", "keep_every", "keep_best", "on_nonfinite", "health", "max_bad_images", "trackers"),
    *("baseline", "eval_epochs", "eval_batch_size", "eval_lr"),
}

IMAGENET = Config("imagenet")
IMAGENET_40 = replace(IMAGENET, preset="imagenet-40", epochs=40, decay=0.97)  # this and the next two: the authors' code
IMAGENET_300 = replace(IMAGENET, preset="imagenet-300", epochs=300, lr=0.3)
IMAGENET_1000 = replace(IMAGENET, preset="imagenet-1000", epochs=1000, lr=0.2, weight_decay=1.5e-6, decay=0.996)
IMAGENET_512 = replace(IMAGENET_1000, preset="imagenet-512", batch_size=512, lr=0.4, decay=0.9995)  # App. G
CIFAR10 = replace(  # ours: the stem and the views as SimCLR's, the rate as the authors' on Imagenette (their README)
    IMAGENET, preset="cifar10", epochs=1000, batch_size=512, image_size=32, encoder="resnet18", stem="cifar",
    lr=2.0, decay=0.996, eval_epochs=100, eval_batch_size=512,
)  # fmt: skip
DIGITS = replace(  # ours: the CIFAR recipe in small, for two CPU cores
    CIFAR10, preset="digits", epochs=90, batch_size=256, image_size=16, width=0.25, warmup_epochs=5.0, eval_epochs=20,
    projection_hidden=512, projection_dim=64, decay=0.97,
)  # fmt: skip
PRESETS = (IMAGENET, IMAGENET_40, IMAGENET_300, IMAGENET_1000, IMAGENET_512, CIFAR10, DIGITS)


def config_of(run: str | Path) -> Config:
    """The settings of a run of this script, from its folder."""
    file, script = Path(run) / "config.json", Path(__file__).name
    if not file.is_file():
        raise InputError(f"{run} must be the folder of a run of {script}, there is no {file}.")
    saved = json.loads(file.read_text(encoding="utf-8"))["run"]
    missing = [field.name for field in fields(Config) if field.name not in saved]
    if missing:
        raise InputError(f"{run} must be the folder of a run of {script}, {file} lacks {missing[0]}.")
    return Config(**{field.name: saved[field.name] for field in fields(Config)})


def load(config: Config, accelerator: Accelerator) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images."""
    if config.preset == "digits":
        if config.data is not None:
            raise InputError(f"`--preset digits` has its own images, --data {config.data} must be left out.")
        accelerator.print("No --data: scikit-learn's 1,797 handwritten digits. For ImageNet: --data DIR (train, val).")
        return load_digits()
    if config.data is None:
        raise InputError(f"`--preset {config.preset}` needs --data DIR, the folder of its images.")
    if config.preset == "cifar10" and not (Path(config.data) / "train").is_dir():
        return load_cifar10(config.data)
    # where some may be unreadable, those are found when they are read
    return load_folders(
        config.data, verify=config.verify and config.max_bad_images == 0 and accelerator.is_main_process
    )


def make_augment(config: Config) -> TwoViewAugment:
    """Views: the paper's; SimCLR's for CIFAR-10; for digits, what leaves one the same: no flips, no colours."""
    if config.preset == "digits":
        return TwoViews(
            RandomWarp(config.image_size, scale=(0.6, 1.1), degrees=15, shear=0.2, elastic=0.1),
            RandomStroke(thickness=0.5, gamma=0.4),
        )
    if config.preset == "cifar10":  # blur and solarisation are for larger images
        return SimCLRAugment(config.image_size, strength=0.5, blur=False)
    return BYOLAugment(config.image_size)


def make_encoder(config: Config, *, channels: int) -> nn.Module:
    """The network that is taken home."""
    if config.encoder in RESNETS:
        return RESNETS[config.encoder](width=config.width, stem=config.stem, in_channels=channels)
    library, _, name = config.encoder.partition(":")
    if library != "timm":
        raise InputError(f"`--encoder` must be one of {', '.join(RESNETS)} or timm:NAME, got {config.encoder}.")
    given = {word.partition("=")[0] for word in sys.argv[1:]}  # a preset's width and stem are no wish of the user's
    if given & {"--width", "--stem"}:
        raise InputError(f"`--width` and `--stem` are of our ResNets, --encoder {config.encoder} has its own.")
    return make_timm(name, channels=channels, image_size=config.image_size)


def make_timm(name: str, *, channels: int, image_size: int) -> nn.Module:
    """A network of timm's without its classifier, randomly initialised."""
    try:
        import timm
    except ImportError as error:
        raise InputError("`--encoder timm:NAME` needs timm: pip install timm.") from error
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models())
        raise InputError(f"timm {timm.__version__} has no model {name!r}, the nearest: {', '.join(near) or 'none'}.")
    about = timm.get_pretrained_cfg(name)
    sized = {"img_size": image_size} if about is not None and about.fixed_input_size else {}
    network = timm.create_model(name, in_chans=channels, num_classes=0, **sized)
    return as_encoder(network, head=None, image_size=image_size, in_channels=channels)


def make_method(config: Config, train: ImageDataset) -> tuple[BYOL, LARS]:
    """Networks, views and target, and the optimiser of all of them."""
    image = train.read(readable(train, 1)[0])
    encoder = make_encoder(config, channels=image.shape[0])
    augment = make_augment(config)
    width: int = encoder.feature_dim  # type: ignore[assignment]
    projector = BYOLHead(width, config.projection_hidden, config.projection_dim)
    predictor = BYOLHead(config.projection_dim, config.projection_hidden, config.projection_dim)
    augment(image[None])  # refuses, for instance, images of two channels
    method = BYOL(encoder, projector, predictor, augment, config.decay, num_classes=len(train.classes or []))
    rate = scaled_lr(config.lr, config.batch_size, rule=config.lr_rule)
    return method, LARS(lars_groups(method), rate, weight_decay=config.weight_decay, lr_in_momentum=False)


def learn(
    config: Config,
    method: BYOL,
    optimizer: LARS,
    train: ImageDataset,
    accelerator: Accelerator,
    *,
    may_change: Collection[str] = (),
) -> PretrainResult:
    """Pretrain, or go on with it."""
    return pretrain(
        method,
        train,
        epochs=config.epochs,
        batch_size=config.batch_size,
        out=config.out or f"runs/byol-{config.preset}",
        chunk_size=config.chunk_size,
        accumulate=config.accumulate,
        batchnorm=config.batchnorm,
        optimizer=optimizer,
        warmup_epochs=config.warmup_epochs,
        seed=config.seed,
        resume=config.resume,
        may_change=MAY_CHANGE | set(config.may_change) | set(may_change),
        workers=config.workers,
        compile=config.compile,
        max_steps=config.max_steps,
        checkpoint_every=config.checkpoint_every,
        keep_every=config.keep_every,
        keep_best=config.keep_best,
        on_nonfinite=config.on_nonfinite,
        max_bad_images=config.max_bad_images,
        health=config.health,
        trackers=config.trackers,
        config=asdict(config),
        accelerator=accelerator,
    )


def main() -> None:
    """Pretrain, then judge."""
    config = parse_flags(
        {c.preset: c for c in PRESETS},
        choose=lambda given: "imagenet" if given.get("data") else "digits",
        description=__doc__,
    )
    use_all_cores()
    accelerator = make_accelerator(config.mixed_precision)
    train, test = load(config, accelerator)
    torch.manual_seed(config.seed)

    with values_from_flags():
        for name in ("eval_epochs", "eval_batch_size", "eval_lr"):
            if not getattr(config, name) > 0:
                raise InputError(f"`{name}` must be positive, got {getattr(config, name)}.")
        method, optimizer = make_method(config, train)
    encoder, untrained = method.encoder, copy.deepcopy(method.encoder)
    result = learn(config, method, optimizer, train, accelerator)
    accelerator.print(f"pretrained: step {result.steps}, {result.seconds:.0f} s in this run")
    if accelerator.is_main_process:
        save_encoder(
            encoder,
            result.out / "encoder.safetensors",
            method=type(method).__name__,
            data=config.data or "digits",
            normalisation="none",
            metadata={"steps": str(result.steps)},
        )
        save_encoder(method.projector, result.out / "projector.safetensors")

    judge = few_label_table if config.preset == "digits" else linear_table
    encoders = {"randomly initialised encoder": untrained} if config.baseline else {}
    table = judge(encoders | {f"{type(method).__name__} encoder": encoder}, train, test, config, accelerator)
    if accelerator.is_main_process:
        (result.out / "results.json").write_text(json.dumps(table, indent=2) + "\n")
        names = list(next(iter(table.values())))
        print(f"\n| frozen features | {' | '.join(names)} |\n|---|" + "---|" * len(names))
        for row, found in table.items():
            print(f"| {row} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |")
        draw(method, train, test, result, config.image_size)  # last, as it needs more than the rest
        print(f"\nfigures: top-1; pictures, weights and log: {result.out}")
    accelerator.end_training()


def few_label_table(
    encoders: dict[str, nn.Module], train: ImageDataset, test: ImageDataset, config: Config, accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """Logistic regression on frozen features, from one label per class to all labels; also on the pixels."""
    transform = EvalTransform(config.image_size)
    judged: dict[str, list[tuple[Tensor, Any]]] = {"raw pixels": [pixels(data) for data in (train, test)]}
    for name, encoder in encoders.items():
        encoder.to(accelerator.device)
        judged[name] = [extract_features(encoder, data, transform=transform) for data in (train, test)]
    columns = {"1 label per class": 1, "5 labels per class": 5, "all labels": None}
    return {
        name: {column: few_label_eval(*train_xy, *test_xy, labels=labels).top1 for column, labels in columns.items()}
        for name, (train_xy, test_xy) in judged.items()
    }


def pixels(data: ImageDataset) -> tuple[Tensor, Any]:
    """The images themselves as features, and their labels."""
    return torch.stack([data.read(i).flatten() for i in range(len(data))]).float(), data.labels


def linear_table(
    encoders: dict[str, nn.Module], train: ImageDataset, test: ImageDataset, config: Config, accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """The paper's linear evaluation of each encoder."""
    table = {}
    for name, encoder in encoders.items():
        found = linear_eval(
            encoder,
            train,
            test,
            transform=LinearEvalAugment(config.image_size),
            test_transform=EvalTransform(config.image_size),
            epochs=config.eval_epochs,
            batch_size=config.eval_batch_size,
            base_lr=config.eval_lr,
            seed=config.seed,
            workers=config.workers,
            max_steps=config.max_steps,
            max_bad_images=config.max_bad_images,
            accelerator=accelerator,
            title=f"linear evaluation, {name}",
        )
        table[name] = {"top-1": found.top1, "top-5": found.top5}
    return table


def draw(method: BYOL, train: ImageDataset, test: ImageDataset, result: PretrainResult, size: int) -> None:
    """Pictures of the run: pairs of views as the network sees them, the curves, what the features take for alike."""
    shown = torch.tensor(readable(train, min(10, len(train))))
    keys = method.keys(shown, seed=0, epoch=0)
    images = [train.read(i)[None] for i in shown.tolist()]
    pairs = [method.augment(image, key[None]) for image, key in zip(images, keys, strict=True)]
    whole = torch.cat([EvalTransform(size, crop=1.0)(image) for image in images])
    plot_views(whole, torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]), result.out / "views.png")
    if result.history:
        plot_history(result.history, result.out / "curves.png", chance=1 / len(train.classes or [1]))
    looked_at = Subset(test, readable(test, min(2000, len(test))))
    features, labels = extract_features(method.encoder, looked_at, transform=EvalTransform(size))
    plot_neighbours(features, looked_at, result.out / "neighbours.png")
    plot_map(features, result.out / "map.png", labels=labels, classes=looked_at.classes)


if __name__ == "__main__":
    run_script(main)
