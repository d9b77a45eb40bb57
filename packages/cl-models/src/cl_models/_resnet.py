"""ResNet encoders: images in, pooled features out, parameters named as in torchvision."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

Stem = Literal["imagenet", "cifar"]
Block = Callable[..., nn.Module]


def _conv(in_channels: int, channels: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, the block of ResNet-18 and 34 (He et al., arXiv:1512.03385, Fig. 5)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, kernel=3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a shortcut, the block of ResNet-50 and above; the stride is on the 3 x 3 ("v1.5")."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = _conv(in_channels, channels, kernel=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, out_channels, kernel=1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, kernel=1, stride=stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A ResNet without its classifier. Made by `resnet18` and its siblings.

    Attributes:
        feature_dim: Width of the output.

    Shape:
        images (n, in_channels, h, w), float -> features (n, feature_dim), averaged over positions.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: list[int], *, width: float, stem: Stem, in_channels: int
    ) -> None:
        super().__init__()
        channels = [round(64 * width * 2**group) for group in range(4)]
        if channels[0] < 1:
            raise ValueError(f"`width` must leave at least one channel of 64, got {width}.")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"`stem` must be 'imagenet' or 'cifar', got {stem!r}.")
        if in_channels < 1:
            raise ValueError(f"`in_channels` must be at least 1, got {in_channels}.")
        if stem == "imagenet":
            self.conv1 = _conv(in_channels, channels[0], kernel=7, stride=2)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv(in_channels, channels[0], kernel=3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.feature_dim = channels[0]
        for group, depth in enumerate(depths):
            setattr(
                self, f"layer{group + 1}", self._group(block, channels[group], depth, stride=1 if group == 0 else 2)
            )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self._initialise()

    def _group(self, block: type[BasicBlock | Bottleneck], channels: int, depth: int, *, stride: int) -> nn.Sequential:
        blocks = []
        for index in range(depth):
            blocks.append(block(self.feature_dim, channels, stride=stride if index == 0 else 1))
            self.feature_dim = channels * block.expansion
        return nn.Sequential(*blocks)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
        return self.avgpool(x).flatten(1)


def resnet18(*, width: float = 1.0, stem: Stem = "imagenet", in_channels: int = 3) -> ResNet:
    """ResNet-18 encoder: torchvision's `resnet18` without `fc`, same parameter names and initialisation.

    Args:
        width: Multiplies the channels of every layer, > 0; 0.25 makes a laptop's network.
        stem: "imagenet": 7 x 7 convolution of stride 2 and max-pool. "cifar": 3 x 3 convolution of stride 1, no pool,
            for images of about 32 px (arXiv:2002.05709, App. B.9).
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder with `feature_dim` 512 times `width`: images (n, in_channels, h, w) -> (n, feature_dim).

    Raises:
        ValueError: An argument is out of its range.

    He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385. The SimCLR authors' ResNet-18
    also projects the first group's shortcut (4,224 parameters more).
    """
    return ResNet(BasicBlock, [2, 2, 2, 2], width=width, stem=stem, in_channels=in_channels)


def resnet50(*, width: float = 1.0, stem: Stem = "imagenet", in_channels: int = 3) -> ResNet:
    """ResNet-50 encoder: torchvision's `resnet50` without `fc`, same parameter names and initialisation.

    Args:
        width: Multiplies the channels of every layer, > 0; the papers use 1, 2 and 4.
        stem: "imagenet": 7 x 7 convolution of stride 2 and max-pool. "cifar": 3 x 3 convolution of stride 1, no pool.
        in_channels: Channels of the images, >= 1.

    Returns:
        Encoder with `feature_dim` 2048 times `width`: images (n, in_channels, h, w) -> (n, feature_dim).

    Raises:
        ValueError: An argument is out of its range.

    He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
    """
    return ResNet(Bottleneck, [3, 4, 6, 3], width=width, stem=stem, in_channels=in_channels)
