"""Pools, shortcuts and selective kernels of the authors' networks, against loops written from TensorFlow's rules."""

import math

import pytest
import torch
from cl_models._blocks import BasicBlock, Bottleneck, MaxPool, ShortcutPool
from cl_models._selective_kernel import SelectiveKernel
from torch import Tensor, nn
from torch.testing import assert_close


def maps(*shape: int) -> Tensor:
    """Of both signs, so that padding with zeros would show."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: cells before the first and how many windows there are."""
    windows = math.ceil(size / stride)
    total = max((windows - 1) * stride + kernel - size, 0)
    return total // 2, windows


def pool(x: Tensor, reduce, *, kernel: int, stride: int) -> Tensor:
    """SAME windows of every channel; `reduce` sees what of them lies inside."""
    top, rows = same_padding(x.shape[2], kernel=kernel, stride=stride)
    left, columns = same_padding(x.shape[3], kernel=kernel, stride=stride)
    out = torch.empty(*x.shape[:2], rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            r, c = i * stride - top, j * stride - left
            out[:, :, i, j] = reduce(x[:, :, max(r, 0) : r + kernel, max(c, 0) : c + kernel])
    return out


SIZES = [(8, 8), (7, 7), (7, 8), (8, 7), (1, 1), (2, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_max_pool_aligns_as_tensorflows_same(size):
    x = maps(2, 3, *size)
    assert_close(MaxPool()(x), pool(x, lambda w: w.amax((2, 3)), kernel=3, stride=2), rtol=0, atol=0)


def test_max_pool_of_an_even_size_lies_one_position_further_than_torchvisions():
    x = maps(1, 1, 8, 8)
    assert not torch.equal(MaxPool()(x), nn.MaxPool2d(3, stride=2, padding=1)(x))
    flipped = nn.MaxPool2d(3, stride=2, padding=1)(x.flip(2, 3)).flip(2, 3)
    assert_close(MaxPool()(x), flipped, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_shortcut_pool_of_stride_1_averages_what_is_inside(size):
    x = maps(2, 3, *size)
    assert_close(ShortcutPool(1)(x), pool(x, lambda w: w.mean((2, 3)), kernel=2, stride=1))


@pytest.mark.parametrize("size", SIZES)
def test_shortcut_pool_of_stride_2_counts_what_is_outside_as_zero(size):
    x = maps(2, 3, *size)
    padded = torch.zeros(2, 3, size[0] + 1, size[1] + 1, dtype=x.dtype)  # one at the far end, then VALID windows
    padded[:, :, : size[0], : size[1]] = x
    expected = torch.empty(2, 3, math.ceil(size[0] / 2), math.ceil(size[1] / 2), dtype=x.dtype)
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            expected[:, :, i, j] = padded[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum((2, 3)) / 4
    assert_close(ShortcutPool(2)(x), expected)


def kernel_of(channels: int, *, stride: int) -> SelectiveKernel:
    """In inference, with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    module = SelectiveKernel(channels, stride=stride).double().eval()
    for norm in (module.bn, module.reduce_bn):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.copy_(0.5 + torch.rand_like(tensor))
    return module


def inference(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm of (c, ...) by its formula."""
    shape = (-1, *[1] * (x.dim() - 1))
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_selective_kernel_mixes_two_streams_by_a_softmax(stride):
    module = kernel_of(6, stride=stride)
    x = maps(2, 6, 5, 5)
    found = module(x)
    for image in range(2):
        streams = torch.relu(
            inference(
                module.bn,
                nn.functional.conv2d(x[image : image + 1], module.conv.weight, stride=stride, padding=1)[0],
            )
        )
        first, second = streams[:6], streams[6:]
        pooled = (first + second).mean((1, 2))
        hidden = torch.relu(inference(module.reduce_bn, module.reduce.weight[:, :, 0, 0] @ pooled))
        logits = module.expand.weight[:, :, 0, 0] @ hidden
        for channel in range(6):
            a, b = logits[channel].exp(), logits[channel + 6].exp()
            expected = (a * first[channel] + b * second[channel]) / (a + b)
            assert_close(found[image, channel], expected)


@pytest.mark.parametrize(("channels", "hidden"), [(64, 32), (512, 32), (1024, 64), (1536, 96)])
def test_selective_kernel_narrows_to_a_sixteenth_but_not_below_32(channels, hidden):
    with torch.device("meta"):
        module = SelectiveKernel(channels, stride=1)
    assert module.reduce.weight.shape == (hidden, channels, 1, 1)
    assert module.expand.weight.shape == (2 * channels, hidden, 1, 1)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_selective_shortcut_averages_before_it_projects(block, stride):
    module = block(8, 4, stride=stride, project=True, selective_kernel=True)
    x = maps(2, 8, 6, 6).float()
    kernel = module.downsample[1]
    assert (kernel.kernel_size, kernel.stride) == ((1, 1), (1, 1))
    averaged = pool(x, lambda w: w.mean((2, 3)), kernel=2, stride=stride)
    expected = module.downsample[2](torch.einsum("oi,nihw->nohw", kernel.weight[:, :, 0, 0], averaged))
    assert_close(module.downsample(x), expected, rtol=1e-4, atol=1e-5)


def test_a_basic_block_has_no_selective_kernel():
    module = BasicBlock(8, 8, stride=1, project=False, selective_kernel=True)
    assert not any(isinstance(part, SelectiveKernel) for part in module.modules())


def test_a_bottleneck_has_a_selective_kernel_in_place_of_its_3_by_3():
    module = Bottleneck(16, 4, stride=2, project=True, selective_kernel=True)
    assert isinstance(module.conv2, SelectiveKernel)
    assert module.bn2 is None
    assert module.conv2.conv.stride == (2, 2)
