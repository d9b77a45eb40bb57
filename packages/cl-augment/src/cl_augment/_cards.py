"""Cards laid out on a sheet: each an image with its name above it and a caption beneath."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cl_augment._glyphs import HEIGHT, WIDTH, text_ink
from cl_augment._images import as_float

SMALLEST_CARD = 96  # pixels: 16 letters, which is what captions need

_LARGE_LETTERS_FROM = 192  # pixels of a card, from which it holds 16 letters of double size
_WHITE, _NAME, _CAPTION, _FAINT = 255, 0, 80, 175  # greys
_MARGIN, _GAP, _ROW_GAP = 16, 12, 20  # around the sheet, beside cards, between their rows


class Card(NamedTuple):
    """An image (c, h, w) of any size, its name, its caption, and whether both are faint."""

    name: str
    image: Tensor
    caption: Sequence[str]
    faint: bool = False


def as_rgb(image: Tensor) -> Tensor:
    """An image (c, h, w), uint8 or float, as uint8 (3, h, w): one channel, or the mean of other than three, is grey."""
    image = as_float(image[None])[0].float()
    if image.shape[0] != 3:
        image = image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def fit(image: Tensor, side: int) -> Tensor:
    """An image (3, h, w) in the middle of a white square: enlarged by the greatest whole number, or shrunk."""
    _, height, width = image.shape
    share = side / max(height, width)
    if share >= 1:
        image = image.repeat_interleave(int(share), dim=1).repeat_interleave(int(share), dim=2)
    else:
        shape = (max(1, round(height * share)), max(1, round(width * share)))
        small = functional.interpolate(image[None].float(), shape, mode="bilinear", antialias=True)[0]
        image = small.round().clamp(0, 255).to(torch.uint8)
    top, left = (side - image.shape[1]) // 2, (side - image.shape[2]) // 2
    bottom, right = side - image.shape[1] - top, side - image.shape[2] - left
    return functional.pad(image, (left, right, top, bottom), value=_WHITE)


def wrap(name: str, letters: int) -> list[str]:
    """A name in as few lines as `letters` in each allow, broken before capitals and after spaces."""
    lines = [""]
    for word in re.findall(r"[A-Z]?[^A-Z ]+ ?|[A-Z ]", name):
        if lines[-1] and len(lines[-1] + word.rstrip()) > letters:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def shorten(line: str, letters: int) -> str:
    """A line of at most so many letters: whole words, and dots for those left out."""
    if len(line) <= letters:
        return line
    kept = line[: letters - 2]
    return f"{kept.rsplit(' ', 1)[0]} .." if " " in kept else f"{kept}.."


def sheet(blocks: Sequence[Sequence[Sequence[Card | None]]], *, side: int) -> Tensor:
    """Draw blocks of rows of cards.

    Args:
        blocks: What belongs together, each a list of rows; None leaves a place free.
        side: Of the square that each image is fitted into, in pixels.

    Returns:
        uint8, shape (3, h, w), on the CPU.
    """
    drawn = [_stack([_row(row, side) for row in block], gap=_ROW_GAP, axis=1) for block in blocks]
    rule = torch.full((3, 1, max(block.shape[2] for block in drawn)), _FAINT, dtype=torch.uint8)
    ruled = [drawn[0], *(part for block in drawn[1:] for part in (rule, block))]
    return functional.pad(_stack(ruled, gap=_ROW_GAP, axis=1), (_MARGIN,) * 4, value=_WHITE)


def _row(cards: Sequence[Card | None], side: int) -> Tensor:
    """Cards side by side, their images on one line."""
    scale = 2 if side >= _LARGE_LETTERS_FROM else 1
    letters = side // (WIDTH * scale)
    names = [wrap(card.name, letters) if card else [] for card in cards]
    above, below = max(map(len, names)), max(len(card.caption) for card in cards if card)
    drawn = []
    for card, name in zip(cards, names, strict=True):
        card = card or Card("", torch.ones(1, 2, 2), [])  # nothing but white
        top = _text([""] * (above - len(name)) + name, side=side, scale=scale, ink=_FAINT if card.faint else _NAME)
        lines = [*card.caption, *[""] * (below - len(card.caption))]
        bottom = _text(lines, side=side, scale=scale, ink=_FAINT if card.faint else _CAPTION)
        drawn.append(_stack([top, fit(as_rgb(card.image), side), bottom], gap=3 * scale, axis=1))
    return _stack(drawn, gap=_GAP, axis=2)


def _text(lines: Sequence[str], *, side: int, scale: int, ink: int) -> Tensor:
    """Lines of letters, (3, lines high, side)."""
    drawn = [torch.full((3, 0, side), _WHITE, dtype=torch.uint8)]
    for line in lines:
        where = text_ink(shorten(line, side // (WIDTH * scale)), scale=scale)
        row = torch.full((3, (HEIGHT + 1) * scale, side), _WHITE, dtype=torch.uint8)
        row[:, : where.shape[0], : where.shape[1]].masked_fill_(where, ink)
        drawn.append(row)
    return torch.cat(drawn, dim=1)


def _stack(pictures: Sequence[Tensor], *, gap: int, axis: int) -> Tensor:
    """Pictures in a row (axis 2) or a column (axis 1), white between them and beside the smaller ones."""
    other = 3 - axis
    most = max(picture.shape[other] for picture in pictures)
    padded = []
    for number, picture in enumerate(pictures):
        more = {axis: gap if number + 1 < len(pictures) else 0, other: most - picture.shape[other]}
        padded.append(functional.pad(picture, (0, more[2], 0, more[1]), value=_WHITE))
    return torch.cat(padded, dim=axis)
