"""What the choices of cl-augment cost and change: the antialiased crop, and torchvision's laws instead of the authors'.

    hatch run bench:augment-choices

On two photographs that scikit-learn brings (427 x 640), whole and scaled to 32 and 256 px. Differences are means of
|a - b| in units of 1 / 255 over 2,000 drawn views; "changed" is the share of values that differ by more than 1 / 255.
The authors' rules are written here as formulas, from what their TensorFlow 2 code does.
"""

import argparse
import time

import torch
from cl_augment import ColorJitter, RandomResizedCropFlip, fold_in, sample_keys, uniform
from cl_augment._blur import blur
from cl_augment._crop import random_boxes
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional


def photographs(size: int | None) -> list[Tensor]:
    """The photographs as float (1, 3, h, w), squares of `size` if given."""
    photos = [torch.tensor(image).permute(2, 0, 1)[None] / 255 for image in load_sample_images().images]
    if size is None:
        return photos
    side = min(photos[0].shape[2:])
    squares = [photo[..., :side, (photo.shape[3] - side) // 2 :][..., :side] for photo in photos]
    return [functional.interpolate(s, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1) for s in squares]


def batch(size: int | None, n: int) -> Tensor:
    """The photographs in turn, n in all."""
    return torch.cat([photo.expand(n // 2, -1, -1, -1) for photo in photographs(size)])


def difference(a: Tensor, b: Tensor) -> str:
    """Two cells of a table."""
    gap = (a - b).abs() * 255
    return f"{gap.mean():.2f} | {(gap > 1).float().mean():.0%}"


def antialias_row(size: int, source: int | None, n: int) -> str:
    """Cost and effect of antialiasing the crop."""
    images, keys = batch(source, n), sample_keys(torch.arange(n), seed=0, epoch=0)
    crops = [RandomResizedCropFlip(size, antialias=antialias) for antialias in (True, False)]
    views, seconds = [], [[], []]
    for number, crop in enumerate(crops):
        views.append(crop(images, keys))
        for _ in range(9):
            begin = time.perf_counter()
            crop(images, keys)
            seconds[number].append(time.perf_counter() - begin)
    cost = sorted(a / b for a, b in zip(*seconds, strict=True))[4]
    extent = "427 x 640" if source is None else f"{source} x {source}"
    return f"| {extent} to {size} | {cost:.2f} | {difference(*views)} |"


def contrast_row(n: int) -> str:
    """Mean of each channel instead of the mean grey."""
    images = batch(32, n)
    params = ColorJitter(saturation=0, hue=0, brightness=0, p=1).draw(
        sample_keys(torch.arange(n), seed=0, epoch=0), images.shape
    )
    ours = ColorJitter(saturation=0, hue=0, brightness=0, p=1).replay(images, params)
    mean = images.mean(dim=(2, 3), keepdim=True)
    theirs = (mean + (images - mean) * params["contrast"][:, None, None, None]).clamp(0, 1)
    return f"| contrast about the mean of each channel | {difference(ours, theirs)} |"


def saturation_row(n: int) -> str:
    """S of HSV times the factor, clipped, instead of a blend with grey."""
    images = batch(32, n)
    stage = ColorJitter(contrast=0, hue=0, brightness=0, p=1)
    params = stage.draw(sample_keys(torch.arange(n), seed=0, epoch=0), images.shape)
    value = images.amax(1, keepdim=True)
    chroma = (value - images.amin(1, keepdim=True)).clamp(min=1e-9)
    saturation = chroma / value.clamp(min=1e-9)
    scale = (saturation * params["saturation"][:, None, None, None]).clamp(0, 1) / saturation
    return f"| saturation in HSV | {difference(stage.replay(images, params), value - (value - images) * scale)} |"


def padding_row(n: int) -> str:
    """Black around the image instead of its reflection, under the blur."""
    images = batch(224, n)
    sigma = 0.1 + 1.9 * uniform(sample_keys(torch.arange(n), seed=0, epoch=0), 1)[:, 0]
    reach = 2 * (224 // 20)  # twice the kernel's radius: what is cut off has seen no border of its own
    framed = blur(functional.pad(images, [reach] * 4), sigma=sigma)
    # a larger image has a wider kernel by the 10 % rule; beyond 11 px a Gaussian of at most 2 px has no weight
    theirs = framed[..., reach:-reach, reach:-reach]
    ours = blur(images, sigma=sigma)
    rim = (ours - theirs).abs()[..., 0, :].mean() * 255
    return f"| black around blurred images (outermost row: {rim:.0f}) | {difference(ours, theirs)} |"


def area_row(height: int, width: int, n: int = 60_000) -> str:
    """Share of the image that a box covers."""
    keys = fold_in(sample_keys(torch.arange(n), seed=0, epoch=0), 0)
    sizes = torch.tensor([[height, width]]).expand(n, 2)
    boxes = random_boxes(uniform(keys, 22), sizes, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    ours = (boxes.height * boxes.width).double() / (height * width)
    theirs = authors_areas(height, width, n)
    cells = [f"{areas.mean():.3f} | {(areas < 0.2).double().mean():.3f}" for areas in (ours, theirs)]
    return f"| {height} x {width} | {' | '.join(cells)} |"


def authors_areas(height: int, width: int, n: int) -> Tensor:
    """Shares of the image that boxes by the authors' law cover.

    tf.image.sample_distorted_bounding_box of the whole image: the aspect is uniform, the height is a uniform whole
    number between what makes 8 % and the most that fits, and boxes below 10 % (min_object_covered) are drawn again.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    while sum(map(len, found)) < n:
        aspect, place = torch.rand(2, n, dtype=torch.float64, generator=generator)
        aspect = 3 / 4 + (4 / 3 - 3 / 4) * aspect
        least = torch.round(torch.sqrt(0.08 * height * width / aspect))
        most = torch.minimum(torch.round(torch.sqrt(height * width / aspect)), torch.floor((width + 0.49999) / aspect))
        most = most.clamp(max=height)
        h = least + torch.floor(place * (most - least + 1))
        w = torch.round(h * aspect)
        area = h * w / (height * width)
        found.append(area[(area >= 0.1) & (w <= width) & (h <= height) & (area <= 1)])
    return torch.cat(found)[:n]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=2000, help="of 32 px; a tenth of it of larger ones")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    n = arguments.views
    print("| crop | time, antialiased / not | mean difference | changed |\n|---|---:|---:|---:|")
    print(antialias_row(32, 32, n), antialias_row(224, 256, n // 20), antialias_row(224, None, n // 20), sep="\n")
    print("\n| the authors' rule | mean difference | changed |\n|---|---:|---:|")
    print(contrast_row(n), saturation_row(n), padding_row(n // 10), sep="\n")
    print("\n| image | mean share of a box | below 0.2 | by the authors' law | below 0.2 |\n|---|---:|---:|---:|---:|")
    print(area_row(32, 32), area_row(375, 500), sep="\n")


if __name__ == "__main__":
    main()
