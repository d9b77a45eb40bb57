"""ResNet encoders: images in, pooled features out, parameters named as in torchvision."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from cl_models._blocks import BasicBlock, Bottleneck, MaxPool, conv
from cl_models._hub import HubMixin

Stem = Literal["imagenet", "cifar"]
Variant = Literal["torchvision", "google"]

DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
LAYERS = ("layer1", "layer2", "layer3", "layer4")
MAPS = ("stem", *LAYERS, "pooled")


class ResNet(nn.Module, HubMixin):
    """A ResNet without its classifier, of any depth. `resnet18` and its siblings make one and say what the rest means.

    Args:
        depth: 18, 34, 50, 101, 152 or 200.
        width: Multiplies the channels of every layer.
        stem: "imagenet" or "cifar".
        variant: "torchvision" or "google".
        selective_kernel: Selective kernels with the stem and shortcuts of ResNet-D.
        in_channels: Channels of the images.

    Attributes:
        feature_dim: Width of the output.
        config: The arguments, enough to build the same network: `ResNet(**encoder.config)`.

    Shape:
        images (n, in_channels, h, w), float -> features (n, feature_dim), averaged over positions.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: float = 1.0,
        stem: Stem = "imagenet",
        variant: Variant = "torchvision",
        selective_kernel: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check(depth, width=width, stem=stem, variant=variant, in_channels=in_channels)
        self.config: dict[str, Any] = {
            "depth": depth,
            "width": width,
            "stem": stem,
            "variant": variant,
            "selective_kernel": selective_kernel,
            "in_channels": in_channels,
        }
        channels = [round(64 * width * 2**group) for group in range(4)]
        self.conv1 = _first(in_channels, channels[0], width=width, stem=stem, deep=selective_kernel)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _pool(stem=stem, variant=variant)
        self.feature_dim = channels[0]
        block, depths = DEPTHS[depth]
        for group, layer in enumerate(LAYERS):
            setattr(self, layer, self._group(block, channels[group], depths[group], stride=1 if group == 0 else 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self._initialise()

    def _group(self, block: type[BasicBlock | Bottleneck], channels: int, depth: int, *, stride: int) -> nn.Sequential:
        selective, always = self.config["selective_kernel"], self.config["variant"] == "google"
        out_channels, blocks = channels * block.expansion, nn.Sequential()
        for index in range(depth):
            first = index == 0
            project = first and (always or stride > 1 or self.feature_dim != out_channels)
            blocks.append(
                block(
                    self.feature_dim,
                    channels,
                    stride=stride if first else 1,
                    project=project,
                    selective_kernel=selective,
                )
            )
            self.feature_dim = out_channels
        return blocks

    def _initialise(self) -> None:
        google = self.config["variant"] == "google"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if google:
                    _lecun_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif google and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)  # every block starts as its shortcut

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer in LAYERS:
            x = getattr(self, layer)(x)
        return self.avgpool(x).flatten(1)

    def intermediate(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Features on the way, by name; what comes after the last one asked for is not computed.

        Args:
            images: (n, in_channels, h, w), float.
            names: Of "stem" (after its pooling), "layer1", "layer2", "layer3", "layer4": maps (n, c, h', w'); and
                "pooled": what `forward` returns, (n, feature_dim).

        Returns:
            The features, in the network's order.

        Raises:
            ValueError: A name is none of these, or there is none.
        """
        wrong = sorted(set(names) - set(MAPS))
        if wrong or not names:
            raise ValueError(f"`names` must hold one or more of {', '.join(MAPS)}, got {wrong or list(names)}.")
        found = {}
        x = images
        for name in MAPS[: max(MAPS.index(name) for name in names) + 1]:
            if name == "stem":
                x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            elif name == "pooled":
                x = self.avgpool(x).flatten(1)
            else:
                x = getattr(self, name)(x)
            if name in names:
                found[name] = x
        return found


def _check(depth: int, *, width: float, stem: str, variant: str, in_channels: int) -> None:
    if depth not in DEPTHS:
        raise ValueError(f"`depth` must be one of {', '.join(map(str, DEPTHS))}, got {depth}.")
    if not width > 0 or width == float("inf") or round(64 * width) < 1:
        raise ValueError(f"`width` must leave at least one channel of 64, got {width}.")
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"`stem` must be 'imagenet' or 'cifar', got {stem!r}.")
    if variant not in ("torchvision", "google"):
        raise ValueError(f"`variant` must be 'torchvision' or 'google', got {variant!r}.")
    if in_channels < 1:
        raise ValueError(f"`in_channels` must be at least 1, got {in_channels}.")


def _first(in_channels: int, channels: int, *, width: float, stem: Stem, deep: bool) -> nn.Module:
    """The convolutions before the first BatchNorm that all stems have."""
    if stem == "cifar":
        return conv(in_channels, channels, kernel=3)
    if not deep:
        return conv(in_channels, channels, kernel=7, stride=2)
    half = max(round(32 * width), 1)
    return nn.Sequential(  # ResNet-D's three small ones, arXiv:1812.01187, Fig. 2b; names as in timm
        conv(in_channels, half, kernel=3, stride=2),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        conv(half, half, kernel=3),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        conv(half, channels, kernel=3),
    )


def _pool(*, stem: Stem, variant: Variant) -> nn.Module:
    if stem == "cifar":
        return nn.Identity()
    return MaxPool() if variant == "google" else nn.MaxPool2d(3, stride=2, padding=1)


def _lecun_(weight: Tensor) -> None:
    """Truncated normal of variance 1 / fan_in, TensorFlow's `VarianceScaling` as the authors call it."""
    fan_in = weight[0].numel()
    std = fan_in**-0.5 / 0.87962566  # a normal cut at two standard deviations keeps this much of its own
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
