"""From synthetic images to real ones: learn handwritten digits from printed ones, whose classes come for free.

    python examples/synthetic_to_real.py                  four minutes on two cores
    python examples/synthetic_to_real.py --real-labels 1  with one labelled real image of each class
    python examples/synthetic_to_real.py --fonts DIR      digits from the fonts in DIR

Synthetic: the digits of the fonts that matplotlib ships, at random sizes, angles, weights and backgrounds. Real:
scikit-learn's scans of handwriting, whose labels are not used but to judge. Three networks are compared by a logistic
regression that sees features and labels of synthetic images only, on real test images:

1. trained by cross entropy on the synthetic images;
2. by the cross-domain loss, which also contrasts unlabelled real images with each other;
3. the same network, after the clusters of its real projections were named by the classes of its synthetic ones
   (`match_classes`), and each class attracted itself across the domains.

The folder of the run gets pictures of the images and of both domains' features before and after the last step.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from accelerate import Accelerator
from cl_augment import EvalTransform, RandomStroke, RandomWarp, TwoViews
from cl_losses import CrossDomainLoss
from cl_models import ProjectionHead, resnet18
from cl_train import (
    ArrayDataset,
    CrossDomain,
    DomainBatches,
    DomainDataset,
    ImageDataset,
    InputError,
    Relabelled,
    TransferScores,
    extract_features,
    flag,
    keep_labels,
    load_digits,
    make_accelerator,
    match_classes,
    parse_flags,
    plot_map,
    pretrain,
    run_script,
    transfer_eval,
    use_all_cores,
)
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional

SIZE, CANVAS, POINTS = 8, 64, 96  # pixels of an image, as the scans have; of the canvas; size of the type
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Config:
    """Every number of the experiment."""

    preset: str = "digits"
    out: str = flag("runs/synthetic-to-real", "folder of the runs")
    fonts: str | None = flag(None, "folder of fonts; default: those of matplotlib")
    per_class: int = flag(200, "synthetic images of each digit")
    real_labels: int = flag(0, "labelled real images of each digit, for all three networks")
    epochs: int = flag(25, "passes over the images of both domains")
    matched_epochs: int = flag(15, "passes after classes were matched")
    keep: float = flag(0.7, "share of the real images that are given a class, the surest first")
    batch_size: int = flag(256, "images per step; half of them without label, where there are such")
    temperature: float = flag(0.2, "temperature of the loss")
    lr: float = flag(2e-3, "learning rate of AdamW")
    seed: int = flag(0, "seed of images, weights, order and views")


def fonts_in(folder: str | Path) -> list[Path]:
    """Fonts whose ten digits are digits: some of matplotlib's have other signs there, or none."""
    from matplotlib.ft2font import FT2Font

    found = []
    for path in sorted(path for kind in ("ttf", "otf") for path in Path(folder).rglob(f"*.{kind}")):
        font = FT2Font(str(path))
        glyphs = [font.get_glyph_name(font.get_char_index(ord(str(digit)))) for digit in range(10)]
        if all(
            glyph.startswith((name, f"uni003{i}")) for i, (glyph, name) in enumerate(zip(glyphs, NAMES, strict=True))
        ):
            found.append(path)
    if not found:
        raise InputError(f"`fonts` must be a folder of fonts (ttf, otf) that have digits, {folder} has none.")
    return found


def render_digits(fonts: list[Path], *, per_class: int, seed: int) -> ArrayDataset:
    """Printed digits, uint8, (10 * per_class, 1, 8, 8).

    Each is stretched to fill the image, as the scans are, then turned, slanted and moved a little; with strokes of any
    weight, light on a dark background with a gradient and noise.
    """
    random = np.random.default_rng(seed)
    labels = np.arange(10 * per_class) % 10
    images = np.stack([_digit(fonts[random.integers(len(fonts))], int(label), random) for label in labels])
    pixels = torch.from_numpy(np.round(255 * images).astype(np.uint8))[:, None]
    return ArrayDataset(pixels, torch.from_numpy(labels))


def _digit(path: Path, digit: int, random: np.random.Generator) -> np.ndarray:
    font, weight = ImageFont.truetype(str(path), POINTS), int(random.integers(0, 7))
    left, top, right, bottom = map(int, font.getbbox(str(digit), stroke_width=weight))
    width, height = right - left, bottom - top
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-left, -top), str(digit), fill=255, font=font, stroke_width=weight)

    tall = random.uniform(0.85, 1.05) * CANVAS
    wide = tall * np.clip(width / height * random.uniform(0.8, 1.4), 0.25, 1)
    angle, slant = np.radians(random.uniform(-15, 15)), random.uniform(-0.3, 0.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1, slant], [0, 1]]) @ np.diag([wide / width, tall / height])
    back = np.linalg.inv(forward)  # where each pixel of the canvas comes from
    shift = np.array([width, height]) / 2 - back @ (CANVAS / 2 + random.uniform(-3, 3, 2))
    coefficients = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    drawn = glyph.transform((CANVAS, CANVAS), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    cells = np.asarray(drawn, np.float32).reshape(SIZE, CANVAS // SIZE, SIZE, CANVAS // SIZE)
    ink = cells.mean((1, 3)) / 255

    rows, columns = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    direction, steep = random.uniform(0, 2 * np.pi), random.uniform(0, 0.4)
    paper = random.uniform(0, 0.35) + steep * (np.cos(direction) * columns + np.sin(direction) * rows)
    paper = np.clip(paper + random.normal(0, 0.05, (SIZE, SIZE)), 0, 1)
    return paper * (1 - ink) + random.uniform(0.7, 1) * ink


def cross_entropy(z: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
    """The comparison: z are logits of two views, (2, n, 10), and labels are all that counts."""
    return functional.cross_entropy(z.flatten(0, 1), labels.repeat(2), ignore_index=-1)


def make_method(config: Config, loss: Loss, *, classifier: bool = False) -> CrossDomain:
    """A small network with a projection head or, to classify, a linear layer; views leave a digit the same one."""
    torch.manual_seed(config.seed)
    encoder = resnet18(width=0.125, stem="cifar", in_channels=1)
    width = encoder.feature_dim
    head = nn.Linear(width, 10) if classifier else ProjectionHead(width, width, 64)
    warp = RandomWarp(16, scale=(0.6, 1.1), degrees=15, shear=0.2, elastic=0.1)
    return CrossDomain(encoder, head, TwoViews(warp, RandomStroke(thickness=0.5, gamma=0.4)), loss)


def learn(
    config: Config,
    method: CrossDomain,
    synthetic: ImageDataset,
    real: ImageDataset,
    accelerator: Accelerator,
    *,
    name: str,
    epochs: int,
    unlabelled: float | None = None,
) -> None:
    """Train on both domains, in batches in which their classes meet where both have labels."""
    data = DomainDataset({"synthetic": synthetic, "real": real})
    pretrain(
        method,
        data,
        epochs=epochs,
        batch_size=config.batch_size,
        out=Path(config.out) / name,
        optimizer=torch.optim.AdamW(method.parameters(), config.lr, weight_decay=1e-4),
        sampler=DomainBatches(data, batch_size=config.batch_size, unlabelled=unlabelled, seed=config.seed),
        seed=config.seed,
        config=asdict(config),
        may_change={"out"},
        accelerator=accelerator,
        title=name,
    )


def match(config: Config, method: CrossDomain, synthetic: ArrayDataset, real: Relabelled) -> Relabelled:
    """The real images with the classes of their clusters, where these are sure.

    What runs on several machines should let one of them match and tell the others.
    """
    network = nn.Sequential(method.encoder, method.projector)
    source, labels = extract_features(network, synthetic, transform=EvalTransform(16))
    target, _ = extract_features(network, real, transform=EvalTransform(16))
    assert labels is not None
    found = match_classes(source, labels, target, known=real.labels, keep=config.keep)
    return Relabelled(real, found.labels)


def judge(encoder: nn.Module, synthetic: ImageDataset, test: ImageDataset) -> TransferScores:
    """What synthetic labels are worth on real test images."""
    x, y = extract_features(encoder, synthetic, transform=EvalTransform(16))
    test_x, test_y = extract_features(encoder, test, transform=EvalTransform(16))
    assert y is not None
    assert test_y is not None
    return transfer_eval(x, y, test_x, test_y)


def draw_map(encoder: nn.Module, synthetic: ImageDataset, test: ImageDataset, path: Path) -> None:
    """Test images of both domains by what the encoder makes of them."""
    shown = [extract_features(encoder, data, transform=EvalTransform(16)) for data in (synthetic, test)]
    count = len(test)
    x = torch.cat([features[:count] for features, _ in shown])
    y = torch.cat([labels[:count] for _, labels in shown if labels is not None])
    domains = torch.arange(2).repeat_interleave(count)
    plot_map(x, path, labels=y, domains=domains, domain_names=["synthetic", "real"])


def draw_domains(synthetic: ImageDataset, real: ImageDataset, path: Path, *, each: int = 40) -> None:
    """Images of both domains, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(2, 1)
    for axis, data, name in zip(
        axes, (synthetic, real), ("synthetic: printed digits", "real: handwriting"), strict=True
    ):
        images = torch.stack([data.read(i)[0] for i in range(each)])
        padded = functional.pad(images, (1, 1, 1, 1), value=255).view(2, each // 2, SIZE + 2, SIZE + 2)
        axis.imshow(padded.transpose(1, 2).flatten(0, 1).flatten(1).numpy(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(name, fontsize=12)
        axis.axis("off")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Three networks, a table, and pictures."""
    config = parse_flags({"digits": Config()}, choose=lambda given: "digits", description=__doc__)
    use_all_cores()
    accelerator = make_accelerator("auto")
    out = Path(config.out)
    train, test = load_digits()
    fonts = fonts_in(config.fonts or Path(matplotlib.get_data_path()) / "fonts" / "ttf")
    synthetic = render_digits(fonts, per_class=config.per_class, seed=config.seed)
    real = keep_labels(train, config.real_labels, seed=config.seed)
    accelerator.print(f"{len(synthetic)} synthetic images from {len(fonts)} fonts, {len(real)} real ones")

    found = {}
    supervised = make_method(config, cross_entropy, classifier=True)
    learn(config, supervised, synthetic, real, accelerator, name="cross entropy", epochs=config.epochs, unlabelled=0.0)
    found["cross entropy"] = judge(supervised.encoder, synthetic, test)

    method = make_method(config, CrossDomainLoss(temperature=config.temperature, unlabelled="own_domain"))
    learn(config, method, synthetic, real, accelerator, name="before", epochs=config.epochs)
    found["cross-domain loss, before matching"] = judge(method.encoder, synthetic, test)
    if accelerator.is_main_process:
        draw_domains(synthetic, train, out / "domains.png")
        draw_map(method.encoder, synthetic, test, out / "before.png")

    matched = match(config, method, synthetic, real)
    learn(config, method, synthetic, matched, accelerator, name="after", epochs=config.matched_epochs)
    found["cross-domain loss, classes matched"] = judge(method.encoder, synthetic, test)
    if accelerator.is_main_process:
        draw_map(method.encoder, synthetic, test, out / "after.png")
        report(config, found, matched, train)
    accelerator.end_training()


def report(config: Config, found: dict[str, TransferScores], matched: Relabelled, train: ArrayDataset) -> None:
    """The table, and how good the classes were that real images were given."""
    columns = {"real test images": "top1", "retrieval@1": "retrieval", "domains told apart": "domain_top1"}
    table = {row: {name: getattr(scores, key) for name, key in columns.items()} for row, scores in found.items()}
    (Path(config.out) / "results.json").write_text(json.dumps(table, indent=2) + "\n")
    print(f"\n| {config.real_labels} real labels per class | {' | '.join(columns)} |\n|---|" + "---|" * len(columns))
    for row, values in table.items():
        print(f"| {row} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |")
    assert train.labels is not None
    assert matched.labels is not None
    given = matched.labels >= 0
    right = float((matched.labels[given] == train.labels[given]).double().mean())
    print(f"\n{int(given.sum())} real images were given a class, {right:.1%} the right one; pictures: {config.out}")


if __name__ == "__main__":
    run_script(main)
