"""Residual blocks of the ResNets, with their shortcuts."""

from torch import Tensor, nn
from torch.nn import functional

from cl_models._selective_kernel import SelectiveKernel


def conv(in_channels: int, channels: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that divides the resolution by its stride."""
    return nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, the block of ResNet-18 and 34 (He et al., arXiv:1512.03385, Fig. 5).

    `selective_kernel` changes the shortcut only: the mixture of streams belongs to the other block.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, project: bool, selective_kernel: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(channels, channels, kernel=3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, stride=stride, pool=selective_kernel) if project else None

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that ends the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a shortcut, the block of ResNet-50 and above; the stride is on the 3 x 3 ("v1.5").

    With `selective_kernel` the 3 x 3 convolution, its BatchNorm and its ReLU are a `SelectiveKernel`.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, project: bool, selective_kernel: bool = False
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, kernel=1)
        self.bn1 = nn.BatchNorm2d(channels)
        if selective_kernel:
            self.conv2: nn.Module = SelectiveKernel(channels, stride=stride)
            self.bn2 = None
        else:
            self.conv2 = conv(channels, channels, kernel=3, stride=stride)
            self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, kernel=1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            projection(in_channels, out_channels, stride=stride, pool=selective_kernel) if project else None
        )

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.conv2(y)
        if self.bn2 is not None:
            y = self.relu(self.bn2(y))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def projection(in_channels: int, channels: int, *, stride: int, pool: bool) -> nn.Sequential:
    """Shortcut between unequal shapes: 1 x 1 convolution and BatchNorm.

    With `pool` (ResNet-D, He et al., arXiv:1812.01187, Fig. 2c) an average over 2 x 2 takes the stride, so that no
    position is skipped.
    """
    if not pool:
        return nn.Sequential(conv(in_channels, channels, kernel=1, stride=stride), nn.BatchNorm2d(channels))
    return nn.Sequential(ShortcutPool(stride), conv(in_channels, channels, kernel=1), nn.BatchNorm2d(channels))


class ShortcutPool(nn.Module):
    """Average over 2 x 2 of stride 1 or 2 that aligns as the authors' TensorFlow code does.

    Windows start at a position and reach over the far border. At stride 1 what is outside does not count (TensorFlow's
    SAME); at stride 2, where an odd size makes the last window reach out, it counts as zero (their explicit padding).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, ceil(h / stride), ceil(w / stride))."""
        if self.stride == 1:
            # the mean of what is inside equals the mean with the border repeated
            return functional.avg_pool2d(functional.pad(x, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
        height, width = x.shape[2] % 2, x.shape[3] % 2
        if height or width:
            x = functional.pad(x, (0, width, 0, height))
        return functional.avg_pool2d(x, 2, stride=2)


class MaxPool(nn.Module):
    """3 x 3 max-pool of stride 2 that aligns as TensorFlow's SAME.

    An even size is padded at the far end only, so windows lie one position further than with `padding=1`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2))."""
        # ceil_mode lets the last window reach out, where it finds nothing: padding by -inf without a copy
        return functional.max_pool2d(x, 3, stride=2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)
