"""Make class folders of JPEGs from Debian's package openclipart-png (public domain), for trying the ImageNet path.

    apt-get install openclipart-png
    python benchmarks/openclipart_folder.py OUT

writes OUT/train/<class> and OUT/val/<class>: every fifth picture is for validation. Pictures keep their aspect, are set
on white, and have a shorter side of 160 to 320 px; byte-equal files are taken once. This is clip art, not photographs.
"""

import argparse
import hashlib
from pathlib import Path

from PIL import Image

SOURCE = Path("/usr/share/openclipart/png")
CLASSES = ("animals", "computer", "food", "office", "people", "plants", "recreation", "tools", "transportation")
LARGEST = 4000  # px; a few files are posters beyond what is worth decoding


def pictures(folder: Path) -> list[Path]:
    """Files of a class, each content once."""
    unique = {hashlib.sha256(path.read_bytes()).digest(): path for path in sorted(folder.rglob("*.png"))}
    return list(unique.values())


def on_white(path: Path) -> Image.Image | None:
    """The picture as RGB with a shorter side of 160 to 320 px, or None if it is huge or a thin strip."""
    with Image.open(path) as image:
        short, long = min(image.size), max(image.size)
        if long > LARGEST or long > 3 * short:
            return None
        picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    factor = min(max(short, 160), 320) / short
    size = tuple(max(160, round(side * factor)) for side in picture.size)
    return white.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def main() -> None:
    """Write the folders and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, default=400, help="pictures of each class")
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # sizes are checked by on_white before decoding
    counts = {"train": 0, "val": 0}
    for name in CLASSES:
        written = 0
        for path in pictures(SOURCE / name):
            picture = on_white(path) if written < arguments.most else None
            if picture is not None:
                part = "val" if written % 5 == 4 else "train"
                target = arguments.out / part / name / f"{written:04d}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                picture.save(target, quality=90)
                written += 1
                counts[part] += 1
    print(f"{counts['train']} training and {counts['val']} validation images in {arguments.out}")


if __name__ == "__main__":
    main()
