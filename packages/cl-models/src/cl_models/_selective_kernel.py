"""Selective kernels: a 3 x 3 convolution whose two streams are mixed as the image asks."""

from torch import Tensor, nn

RATIO = 0.0625  # of the bottleneck to the channels, SimCLR v2's; at least 32 channels


class SelectiveKernel(nn.Module):
    r"""Two streams of one 3 x 3 convolution, mixed channel by channel with weights that depend on the whole image.

    With streams $u_1, u_2$ (each convolution, BatchNorm, ReLU) and their sum averaged over positions, $s$,

    $$a_1, a_2 = \operatorname{softmax}(W_2 \operatorname{ReLU}(\operatorname{BN}(W_1 s))), \qquad
    y = a_1 u_1 + a_2 u_2,$$

    the softmax being over the two streams. As in the authors' code both streams have 3 x 3 kernels (the paper's have
    two sizes).

    Li et al., Selective Kernel Networks, 2019, arXiv:1903.06586; Chen et al., arXiv:2006.10029, App. C.
    """

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.relu = nn.ReLU(inplace=True)
        hidden = max(int(channels * RATIO), 32)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, ceil(h / stride), ceil(w / stride))."""
        first, second = self.relu(self.bn(self.conv(x))).chunk(2, dim=1)
        pooled = (first + second).mean(dim=(2, 3), keepdim=True)
        mixing = self.expand(self.relu(self.reduce_bn(self.reduce(pooled))))
        # a softmax over two is a logistic function of their difference
        weight = (mixing[:, : first.shape[1]] - mixing[:, first.shape[1] :]).sigmoid()
        return first * weight + second * (1 - weight)
