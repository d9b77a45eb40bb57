"""Fine-tuning, distillation and evaluation of test_distributed.py, on however many processes there are."""

from pathlib import Path

import numpy as np
import torch
from cl_augment import EvalTransform, LinearEvalAugment
from cl_train import (
    ArrayDataset,
    Classifier,
    FolderDataset,
    ImageDataset,
    InputError,
    Subset,
    Tuned,
    distill,
    fine_tune,
    linear_eval,
)
from cl_train import make_accelerator as make
from PIL import Image
from torch import Tensor, nn

TRANSFORMS = {"transform": LinearEvalAugment(8), "test_transform": EvalTransform(8)}


class Net(nn.Module):
    """Nothing in it looks at more than one image."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


def network(seed: int) -> Classifier:
    torch.manual_seed(seed)
    made = Classifier(Net(), 3)
    nn.init.normal_(made.probe.weight)
    return made.double()


def images(n: int, *, seed: int) -> ArrayDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64)
    return ArrayDataset(pixels, torch.randint(3, (n,), generator=generator), classes=["a", "b", "c"])


def taken_home(found: Tuned) -> dict:
    weights = {name: value.clone() for name, value in found.network.state_dict().items()}
    return {"weights": weights, "scores": vars(found.scores)}


def with_bad_images(folder: Path) -> list[str]:
    """What is said when the share of one process holds more unreadable images than all may: of training, of test."""
    root, rank = folder / "files", make("no").process_index
    if rank == 0:
        for number in range(24):
            path = root / f"class {number % 2}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(path)
            if number in (3, 9, 15):
                path.write_bytes(b"no image")
    make("no").wait_for_everyone()
    data = FolderDataset(root, verify=False)
    good = Subset(data, [i for i in range(24) if not data.name(i).endswith(("03.png", "09.png", "15.png"))])
    return [
        said(data, good, folder / "bad", max_bad_images=0.05),
        said(good, data, folder / "bad test", max_bad_images=0.05),
        said(good, data, folder / "one bad", max_bad_images=0.0),
    ]


def said(train: ImageDataset, test: ImageDataset, out: Path, *, max_bad_images: float) -> str:
    """The error of an evaluation."""
    settings = {"epochs": 1, "batch_size": 12, "workers": 0, "progress": False, "max_bad_images": max_bad_images}
    try:
        linear_eval(network(0).encoder.float(), train, test, out=out, **settings, **TRANSFORMS)
    except InputError as error:
        return str(error)
    return "nothing"


def observe(folder: Path) -> dict:
    """What this process has at the end."""
    settings = {"epochs": 2, "batch_size": 12, "workers": 0, "progress": False, "accelerator": make("no")} | TRANSFORMS
    tuned, taught = network(1), network(2)
    train, test = images(42, seed=0), images(301, seed=1)
    settings["optimizer"] = lambda network, batch: torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)
    first = fine_tune(tuned, train, test, labels=0.6, **settings)
    second = distill(taught, train, test, teacher=network(3), labels=4, label_weight=0.4, **settings)
    few = fine_tune(network(1), train, images(2, seed=3), **settings)  # a process may have no test image
    return {
        "fine-tuned": taken_home(first),
        "distilled": taken_home(second),
        "few test images": vars(few.scores),
        "bad images": with_bad_images(folder),
    }
