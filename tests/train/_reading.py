"""A run for test_readers.py that reads in two workers until it is stopped: `python _reading.py OUT`."""

import multiprocessing
import sys
import time

import torch
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ImageDataset, SimCLR, pretrain
from cl_train._loader import batches
from torch import Tensor, nn


class Slow(ImageDataset):
    """64 images that take their time."""

    labels = classes = images = None

    def __len__(self) -> int:
        return 64

    def read(self, index: int) -> Tensor:
        time.sleep(0.01)
        return torch.full((3, 8, 8), index, dtype=torch.uint8)


class Net(nn.Module):
    """Says in its third step which workers there are."""

    feature_dim = 3
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, views: Tensor) -> Tensor:
        self.steps += 1
        if self.steps == 3:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        return self.layer(views.mean((2, 3)))


torch.manual_seed(0)
method = SimCLR(Net(), nn.Linear(3, 3), SimCLRAugment(8), NTXentLoss(temperature=0.5))
ids = torch.arange(16)
never_closed = batches(Slow(), [(ids, ids)] * 9, cut=method.cut, workers=2, device=torch.device("cpu"))
next(never_closed)
pretrain(method, Slow(), epochs=1000, batch_size=16, out=sys.argv[1], workers=2, mixed_precision="no", progress=False)
