"""A task that a small network learns in a few steps, for the tests of what trains on labels."""

import torch
from cl_augment import EvalTransform, LinearEvalAugment
from cl_train import ArrayDataset
from torch import Tensor, nn

TRANSFORMS = {"transform": LinearEvalAugment(8), "test_transform": EvalTransform(8)}


def coloured(n: int = 48, *, seed: int = 0, classes: int = 3) -> ArrayDataset:
    """Class c is bright in channel c, so the mean colour tells it."""
    images = 0.3 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % classes
    images[torch.arange(n), labels] += 0.6
    return ArrayDataset(images, labels)


class Net(nn.Module):
    """An encoder with BatchNorm, the same weights each time."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


class Same(nn.Module):
    """Views that are the images."""

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        return images
