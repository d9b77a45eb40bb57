"""Draw docs/assets/augment_preview.png: what SimCLR's augmentation does to two painted scenes, stage by stage.

python docs/pictures/augment.py
"""

from pathlib import Path

import torch
from cl_augment import SimCLRAugment, preview, sample_keys
from torch import Tensor

HEIGHT, WIDTH = 240, 320


def colour(hexadecimal: str) -> Tensor:
    """#rrggbb as (3, 1, 1) in [0, 1]."""
    return torch.tensor([int(hexadecimal[place : place + 2], 16) / 255 for place in (1, 3, 5)])[:, None, None]


def paint(scene: Tensor, where: Tensor, what: Tensor) -> Tensor:
    """The scene with `what` on it, as much as `where` says, (h, w) in [0, 1]."""
    return scene + where * (what - scene)


def disc(x: Tensor, y: Tensor, *, at: tuple[float, float], radius: float) -> Tensor:
    """A disc with a soft rim, in pixels."""
    return (radius - torch.hypot(x - at[0], y - at[1])).clamp(0, 1)


def boat(x: Tensor, y: Tensor) -> Tensor:
    """A sailing boat under a low sun."""
    scene = colour("#f6bd60") + (y / HEIGHT) * (colour("#f28482") - colour("#f6bd60"))
    scene = paint(scene, disc(x, y, at=(235, 120), radius=34), colour("#fff3b0"))
    waves = 138 + 4 * torch.sin(x / 17) + 2 * torch.sin(x / 5 + 1)
    sea = colour("#2a6f97") + 0.12 * torch.sin(y / 3 + 3 * torch.sin(x / 23))
    scene = paint(scene, (y - waves).clamp(0, 1), sea)
    hull = ((y - 150).clamp(0, 1) * (172 - y).clamp(0, 1)) * (60 - (x - 120).abs() - 0.9 * (y - 150)).clamp(0, 1)
    scene = paint(scene, hull, colour("#7f4f24"))
    sail = ((x - 122).clamp(0, 1) * (146 - y).clamp(0, 1)) * ((y - 40) * 0.55 - (x - 122)).clamp(0, 1)
    scene = paint(scene, sail, colour("#fefae0"))
    jib = ((117 - x).clamp(0, 1) * (146 - y).clamp(0, 1)) * ((y - 60) * 0.45 - (117 - x)).clamp(0, 1)
    return paint(scene, jib, colour("#d62828"))


def garden(x: Tensor, y: Tensor) -> Tensor:
    """Flowers before hills."""
    scene = colour("#90e0ef") + (y / HEIGHT) * (colour("#caf0f8") - colour("#90e0ef"))
    for height, slope, tone in ((110, 37, "#80b918"), (135, 23, "#55a630"), (165, 51, "#2b9348")):
        scene = paint(scene, (y - height - 14 * torch.sin(x / slope + height)).clamp(0, 1), colour(tone))
    flowers = [(60, 178, "#ff006e"), (140, 196, "#ffbe0b"), (205, 172, "#8338ec"), (270, 200, "#fb5607")]
    for left, top, tone in flowers:
        scene = paint(scene, (2.5 - (x - left).abs()).clamp(0, 1) * (y - top).clamp(0, 1), colour("#1b4332"))
        angle = torch.atan2(y - top, x - left)
        petals = (16 + 7 * torch.cos(6 * angle) - torch.hypot(x - left, y - top)).clamp(0, 1)
        scene = paint(scene, petals, colour(tone))
        scene = paint(scene, disc(x, y, at=(left, top), radius=7), colour("#fff3b0"))
    return scene


def main() -> None:
    """Write the picture."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    images = torch.stack([boat(x, y), garden(x, y)]).clamp(0, 1)
    keys = sample_keys(torch.tensor([3, 8]), seed=0, epoch=0)
    preview(images, SimCLRAugment(224), keys=keys, path=Path(__file__).parents[1] / "assets" / "augment_preview.png")


if __name__ == "__main__":
    main()
