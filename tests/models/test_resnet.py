"""ResNets: torchvision's without the classifier, and the stem for small images."""

import math
import re

import pytest
import torch
import torchvision
from cl_models import resnet18, resnet50
from torch import Tensor, nn
from torch.testing import assert_close

MODELS = {"resnet18": (resnet18, 512), "resnet50": (resnet50, 2048)}


def on_meta(make, **arguments) -> nn.Module:
    """Names and shapes without numbers: no time, no memory."""
    with torch.device("meta"):
        return make(**arguments)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(state: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in state.items()]


def trained(module: nn.Module) -> nn.Module:
    """As after training: no scale, shift or running statistic is 1 or 0 any more."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.bias.data, part.running_mean, part.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return module


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def shape_after(network: nn.Module, layer: str, batch: Tensor) -> tuple[int, ...]:
    found = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, given, out: found.append(out.shape))
    with torch.no_grad():
        network(batch)
    handle.remove()
    return tuple(found[0])


@pytest.mark.parametrize(
    ("make", "stem", "count"),
    [
        (resnet18, "imagenet", 11_176_512),
        (resnet18, "cifar", 11_168_832),
        (resnet50, "imagenet", 23_508_032),
        (resnet50, "cifar", 23_500_352),
    ],
)
def test_resnet_has_as_many_parameters_as_published(make, stem, count):
    assert parameter_count(on_meta(make, stem=stem)) == count


@pytest.mark.parametrize("name", MODELS)
def test_resnet_names_and_shapes_are_torchvisions_without_fc(name):
    theirs = on_meta(getattr(torchvision.models, name)).state_dict()
    theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith("fc.")}
    assert shapes(on_meta(MODELS[name][0]).state_dict()) == shapes(theirs)


@pytest.mark.parametrize("name", MODELS)
def test_resnet_gives_torchvisions_features(name):
    torch.manual_seed(0)
    theirs = trained(getattr(torchvision.models, name)()).eval()
    theirs.fc = nn.Identity()
    ours = on_meta(MODELS[name][0]).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        expected = theirs(images(2, 3, 64, 64))
        assert_close(ours(images(2, 3, 64, 64)), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_resnet_gives_torchvisions_features_in_training():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    ours = resnet18()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert_close(ours(images(4, 3, 32, 32)), theirs(images(4, 3, 32, 32)), rtol=1e-5, atol=1e-5)
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-5)  # the running statistics


def test_resnet_starts_as_torchvisions():
    torch.manual_seed(0)
    network = resnet18(width=0.5)
    weight = network.layer4[0].conv1.weight  # from 128 channels to 256: fan in and fan out differ
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)  # He et al., fan out
    assert all(
        (m.weight == 1).all() and (m.bias == 0).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("width", [0.125, 0.3, 1.0, 2.0])
def test_resnet_feature_dim_is_the_width_of_its_output(name, width):
    make, feature_dim = MODELS[name]
    network = on_meta(make, width=width).eval()
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, network.feature_dim)
    if width != 0.3:
        assert network.feature_dim == width * feature_dim


@pytest.mark.parametrize("width", [0.125, 2.0])
def test_resnet_width_multiplies_the_channels_of_every_layer(width):
    narrow, full = (shapes(on_meta(resnet50, width=w).state_dict()) for w in (width, 1.0))
    for (name, shape), (_, full_shape) in zip(narrow, full, strict=True):
        if len(shape) > 0:
            assert shape[0] == width * full_shape[0], name


def test_resnet_imagenet_stem_quarters_the_resolution():
    network = resnet18(width=0.125)
    assert shape_after(network, "layer1", images(2, 3, 32, 32)) == (2, 8, 8, 8)


def test_resnet_cifar_stem_keeps_the_resolution():
    network = resnet18(width=0.125, stem="cifar")
    assert shape_after(network, "layer1", images(2, 3, 32, 32)) == (2, 8, 32, 32)


def test_resnet_cifar_stem_is_a_small_convolution():
    network = on_meta(resnet50, stem="cifar")
    assert network.conv1.weight.shape == (64, 3, 3, 3)
    assert network.conv1.stride == (1, 1)


@pytest.mark.parametrize("channels", [1, 6])
def test_resnet_takes_any_number_of_channels(channels):
    network = resnet18(width=0.125, in_channels=channels)
    assert network(images(2, channels, 32, 32)).shape == (2, 64)


def test_resnet_takes_images_of_any_shape():
    network = resnet18(width=0.125)
    assert network(images(2, 3, 40, 64)).shape == (2, 64)


def test_resnet_averages_over_positions():
    network = resnet18(width=0.125, stem="cifar").eval()
    maps = []
    network.layer4.register_forward_hook(lambda module, given, out: maps.append(out))
    with torch.no_grad():
        features = network(images(2, 3, 32, 32))
    assert maps[0].shape == (2, 64, 4, 4)
    assert_close(features, maps[0].mean(dim=(2, 3)))


def test_resnet_gives_every_parameter_a_gradient():
    network = resnet18(width=0.125, stem="cifar")
    network(images(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


@pytest.mark.parametrize("make", [resnet18, resnet50])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0.0}, "`width` must leave at least one channel of 64, got 0.0."),
        ({"width": -1.0}, "`width` must leave at least one channel of 64, got -1.0."),
        ({"stem": "mnist"}, "`stem` must be 'imagenet' or 'cifar', got 'mnist'."),
        ({"in_channels": 0}, "`in_channels` must be at least 1, got 0."),
    ],
)
def test_resnet_says_what_is_out_of_range(make, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**arguments)
