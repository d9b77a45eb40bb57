"""The same SimCLR run with the views of cl-augment and with lightly's PIL views: what the encoder is worth after it.

    hatch run bench:augment-training --data DIR      # DIR/train.parquet and DIR/test.parquet of CIFAR-10

The two arms share the order of the images, the initial weights, the network, the optimiser and the number of steps;
only the transform differs. Judged by weighted k nearest neighbours (k = 20, temperature 0.1) of the features of test
images. The files are those of the Hugging Face Hub (columns `img` with encoded bytes, `label`).
"""

import argparse
import io
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pyarrow.parquet
import torch
from cl_augment import EvalTransform, SimCLRAugment
from cl_losses import NTXentLoss
from cl_models import ProjectionHead, resnet18
from cl_train import ArrayDataset, SimCLR, extract_features, knn_eval, pretrain
from lightly.transforms.simclr_transform import SimCLRViewTransform
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

SIZE, STRENGTH = 32, 0.5


class LightlyViews(nn.Module):
    """lightly's transform of PIL images, image by image, its generators seeded by the image's key."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = SimCLRViewTransform(input_size=SIZE, cj_strength=STRENGTH, gaussian_blur=0.0, normalize=None)

    def cut(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Both views, whole: there is nothing left for `finish`."""
        views: tuple[list[Tensor], list[Tensor]] = ([], [])
        for image, key in zip(images, keys.tolist(), strict=True):
            picture = tv.to_pil_image(image)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key)
                np.random.seed(key % 2**32)  # lightly's blur and rotation ask numpy
                for view in views:
                    view.append(self.transform(picture))
        return torch.stack(views[0]), torch.stack(views[1])

    def finish(self, cuts: tuple[Tensor, Tensor], keys: Tensor) -> tuple[Tensor, Tensor]:
        """The cuts are the views."""
        return cuts


ARMS = {"cl-augment": lambda: SimCLRAugment(SIZE, strength=STRENGTH), "lightly": LightlyViews}


def read(file: Path, count: int) -> ArrayDataset:
    """The first `count` images and labels of a parquet file."""
    table = pyarrow.parquet.read_table(file).slice(0, count)
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["img"].to_pylist()]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return ArrayDataset(images, torch.tensor(table["label"].to_pylist()))


def worth(method: SimCLR, train: ArrayDataset, test: ArrayDataset) -> float:
    """Accuracy of the nearest neighbours."""
    transform = EvalTransform(SIZE)
    train_x, train_y = extract_features(method.encoder, train, transform=transform)
    test_x, test_y = extract_features(method.encoder, test, transform=transform)
    assert train_y is not None
    assert test_y is not None
    return knn_eval(train_x, train_y, test_x, test_y, k=20).top1


def run(arm: str, seed: int, train: ArrayDataset, test: ArrayDataset, *, epochs: int, batch: int) -> tuple[float, ...]:
    """Accuracy before and after training, and minutes of training."""
    torch.manual_seed(seed)
    encoder = resnet18(width=0.25, stem="cifar")
    head = ProjectionHead(encoder.feature_dim, encoder.feature_dim, 64)
    method = SimCLR(encoder, head, ARMS[arm](), NTXentLoss(temperature=0.5))  # type: ignore[arg-type]
    before = worth(method, train, test)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.12 * batch / 256, momentum=0.9, weight_decay=5e-4)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        pretrain(
            method, train, epochs=epochs, batch_size=batch, seed=seed, out=out, optimizer=optimizer,
            warmup_epochs=1, mixed_precision="no", progress=False,
        )  # fmt: skip
    minutes = (time.perf_counter() - begin) / 60
    return before, worth(method, train, test), minutes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train = read(arguments.data / "train.parquet", arguments.images)
    test = read(arguments.data / "test.parquet", arguments.test_images)
    print("| views | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " | mean ± deviation | minutes |")
    print("|---|" + "---:|" * (len(arguments.seeds) + 2))
    untrained = []
    for arm in arguments.arms:
        runs = [run(arm, seed, train, test, epochs=arguments.epochs, batch=arguments.batch) for seed in arguments.seeds]
        untrained = [before for before, _, _ in runs]
        found = [after for _, after, _ in runs]
        spread = f"{mean(found):.3f} ± {stdev(found):.3f}" if len(found) > 1 else f"{found[0]:.3f}"
        cells = [f"{value:.3f}" for value in found]
        print(f"| {arm} | " + " | ".join([*cells, spread, f"{mean(m for *_, m in runs):.1f}"]) + " |", flush=True)
    cells = [*(f"{value:.3f}" for value in untrained), f"{mean(untrained):.3f}", ""]
    print("| (untrained) | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
