"""A picture of what an augmentation does, stage by stage."""

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch
from torch import Tensor, nn

from cl_augment._captions import applies, caption
from cl_augment._cards import SMALLEST_CARD, Card, sheet
from cl_augment._chain import Images, check_batch, rows_of
from cl_augment._foreign import KorniaStage, as_stage
from cl_augment._images import as_float
from cl_augment._keys import check_keys, random_keys
from cl_augment._png import write_png
from cl_augment._stage import Params, Stage
from cl_augment._views import Chains

_SIDES = (192, 384)  # least and greatest side of an image in the picture that is chosen without being asked for


@torch.no_grad()
def preview(
    images: Images,
    augment: nn.Module,
    *,
    keys: Tensor | None = None,
    generator: torch.Generator | None = None,
    rows: int = 4,
    size: int | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Tensor:
    """A picture of what the augmentation does: each image after each stage, and what was drawn for it.

    A row for each view of an image: the original, the image after each stage of the view, and the view, before `mean`
    and `std`. The name of the stage stands above, the numbers it drew beneath; both are faint where the stage left the
    image as it was. One channel is shown in grey, other than three by their mean, values beyond [0, 1] as 0 and 1. A
    view is enlarged by whole numbers, without smoothing, so that its pixels can be seen.

    Args:
        images: A batch (n, c, h, w) or a list of (c, h, w), uint8 or float in [0, 1], on any device. The first `rows`
            of them are shown.
        augment: A `SimCLRAugment`, `BYOLAugment`, `LinearEvalAugment`, `TwoViews`, ...; a single stage, ours or
            Kornia's; or a module called as `module(images, keys)`, such as `EvalTransform`, which is one stage.
        keys: Keys from `sample_keys`, int64, shape (n,): those of the training show what it will see. Without them,
            fresh ones are drawn.
        generator: Source of fresh keys; without it, the global generator of the images' device.
        rows: Greatest number of images shown, >= 1.
        size: Side of each image in the picture, in pixels, >= 96, smaller and larger ones being fitted into it; by
            default that of the views, times the least whole number that makes it 192, or 384 if that is less.
        path: Where to write the picture, too: a file that ends in .png.

    Returns:
        The picture, uint8, shape (3, height, width), on the CPU.

    Raises:
        TypeError: `augment` is no module, or images or keys have another dtype.
        ValueError: There are no images, they leave [0, 1], keys are of another number, `rows` or `size` is out of its
            range, or `path` does not end in .png.
        OSError: The file cannot be written.
    """
    file = None if path is None else Path(path)
    _check(images, augment, rows=rows, size=size, file=file)
    if keys is None:
        keys = _fresh_keys(images, augment, generator)
    check_keys(keys, len(images))
    blocks = _blocks(images[:rows], augment, keys[:rows])
    picture = sheet(blocks, side=_side_for(blocks) if size is None else size)
    if file is not None:
        write_png(file, picture)
    return picture


def _check(images: Images, augment: nn.Module, *, rows: int, size: int | None, file: Path | None) -> None:
    check_batch(images)
    if len(images) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    if not isinstance(augment, nn.Module):
        raise TypeError(f"`augment` must be an augmentation, such as SimCLRAugment(224), got {type(augment).__name__}.")
    if rows < 1:
        raise ValueError(f"`rows` must be at least 1, got {rows}.")
    if size is not None and size < SMALLEST_CARD:
        raise ValueError(f"`size` must be at least {SMALLEST_CARD} pixels, which captions need, got {size}.")
    if file is not None and file.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in .png, got {str(file)!r}.")


def _fresh_keys(images: Images, augment: nn.Module, generator: torch.Generator | None) -> Tensor:
    if isinstance(augment, Chains):
        return augment.fresh_keys(images, generator)
    on_cpu = isinstance(as_stage(augment), KorniaStage)
    return random_keys(len(images), device=torch.device("cpu") if on_cpu else images[0].device, generator=generator)


def _blocks(images: Images, augment: nn.Module, keys: Tensor) -> list[list[list[Card | None]]]:
    """For each image a row of cards for each view, the original before the first, the views below each other."""
    chains = augment.stages() if isinstance(augment, Chains) else [[as_stage(augment)]]
    longest = max(map(len, chains))
    normalised = isinstance(augment, Chains) and augment.finish_with.mean is not None
    blocks = []
    for number, params in enumerate(_draw(images, augment, keys)):
        image = images[number]
        block = []
        for view, (stages, drawn) in enumerate(zip(chains, params, strict=True)):
            row: list[Card | None] = [
                Card("original", image, [f"image {number}", _extent(image)]) if view == 0 else None
            ]
            cards = _stage_cards(image[None], stages, drawn)
            row += [*cards, *[None] * (longest - len(cards))]
            if longest > 1:  # else the only stage is the view
                words = [_extent(cards[-1].image), *(["before mean, std"] if normalised else [])]
                row.append(Card(f"view {view + 1}" if len(chains) > 1 else "view", cards[-1].image, words))
            block.append(row)
        blocks.append(block)
    return blocks


def _draw(images: Images, augment: nn.Module, keys: Tensor) -> list[list[list[Params]]]:
    """What the stages of each view of each image draw, in rows of one."""
    ones = [slice(place, place + 1) for place in range(len(images))]
    if isinstance(augment, Chains):
        drawn = augment.draw(images, keys)
        return [[rows_of(params, one) for params in drawn] for one in ones]
    stage = as_stage(augment)  # called with the keys as they are, so that it draws what it draws by itself
    return [[[stage.draw(keys[one], image[None].shape)]] for one, image in zip(ones, images, strict=True)]


def _stage_cards(image: Tensor, stages: Sequence[Stage], params: Sequence[Params]) -> list[Card]:
    """The image (1, c, h, w) after each stage."""
    cards = []
    for stage, drawn in zip(stages, params, strict=True):
        image = stage.replay(image if stage.reads_uint8 else as_float(image), drawn)
        if not isinstance(image, Tensor) or image.ndim != 4:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{stage.label} must return images (n, c, h, w) to be shown, got {got}.")
        cards.append(Card(stage.label, image[0], caption(stage, drawn), faint=not applies(drawn)))
    return cards


def _extent(image: Tensor) -> str:
    """Height and width in pixels, and the channels where they are shown by their mean."""
    channels, height, width = image.shape
    return f"{height} x {width}" + ("" if channels in (1, 3) else f" x {channels}")


def _side_for(blocks: list[list[list[Card | None]]]) -> int:
    """Of the views, which stand last in their rows, enlarged."""
    side = max(max(row[-1].image.shape[1:]) for block in blocks for row in block if row[-1])
    least, greatest = _SIDES
    return min(side * max(1, ceil(least / side)), greatest)
