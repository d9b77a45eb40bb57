"""ResNets: torchvision's without the classifier, and the stem for small images."""

import math
import re

import pytest
import torch
import torchvision
from cl_models import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152, resnet200
from torch import Tensor, nn
from torch.testing import assert_close

MODELS = {
    "resnet18": (resnet18, 512),
    "resnet34": (resnet34, 512),
    "resnet50": (resnet50, 2048),
    "resnet101": (resnet101, 2048),
    "resnet152": (resnet152, 2048),
    "resnet200": (resnet200, 2048),
}
TORCHVISION = [name for name in MODELS if name != "resnet200"]

# millions, of the SimCLR v2 README; at this precision only with BatchNorm's running statistics among them
PUBLISHED = [
    *[(50, 1, False, 24), (50, 1, True, 35), (50, 2, False, 94), (50, 2, True, 140)],
    *[(101, 1, False, 43), (101, 1, True, 65), (101, 2, False, 170), (101, 2, True, 257)],
    *[(152, 1, False, 58), (152, 1, True, 89), (152, 2, False, 233), (152, 2, True, 354), (152, 3, True, 795)],
]
# stem, variant, selective kernel: everything that changes a layer
KINDS = [
    (stem, variant, selective)
    for stem in ("imagenet", "cifar")
    for variant in ("torchvision", "google")
    for selective in (False, True)
]


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
    ("make", "stem", "variant", "count"),
    [
        (resnet18, "imagenet", "torchvision", 11_176_512),
        (resnet18, "cifar", "torchvision", 11_168_832),
        (resnet18, "imagenet", "google", 11_180_736),
        (resnet18, "cifar", "google", 11_173_056),
        (resnet50, "imagenet", "torchvision", 23_508_032),
        (resnet50, "cifar", "torchvision", 23_500_352),
        (resnet50, "imagenet", "google", 23_508_032),
        (resnet50, "cifar", "google", 23_500_352),
    ],
)
def test_resnet_has_as_many_parameters_as_the_papers(make, stem, variant, count):
    assert parameter_count(on_meta(make, stem=stem, variant=variant)) == count


@pytest.mark.parametrize(("depth", "width", "selective", "millions"), PUBLISHED)
def test_resnet_has_as_many_parameters_as_published(depth, width, selective, millions):
    network = on_meta(ResNet, depth=depth, width=width, selective_kernel=selective, variant="google")
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert abs(parameter_count(network) + statistics - millions * 1e6) <= 0.5e6


@pytest.mark.parametrize("name", TORCHVISION)
def test_resnet_names_and_shapes_are_torchvisions_without_fc(name):
    theirs = on_meta(getattr(torchvision.models, name)).state_dict()
    theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith("fc.")}
    assert shapes(on_meta(MODELS[name][0]).state_dict()) == shapes(theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
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


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("make", [resnet18, resnet50])
@pytest.mark.parametrize(("stem", "variant", "selective"), KINDS)
def test_resnet_gives_every_parameter_a_gradient(make, stem, variant, selective, size):
    torch.manual_seed(0)
    network = trained(make(width=0.0625, stem=stem, variant=variant, selective_kernel=selective))
    features = network(images(3, 3, size, size))
    assert features.shape == (3, network.feature_dim)
    features.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.norm() > 0] == []


def test_the_wide_selective_network_of_simclr_v2_learns_at_224_px():
    torch.manual_seed(0)
    network = resnet50(width=2, selective_kernel=True)
    features = network(images(2, 3, 224, 224))
    assert features.shape == (2, 4096)
    features.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.norm() > 0 for p in network.parameters())


def test_resnet_can_be_built_again_from_its_config():
    network = on_meta(resnet34, width=0.5, stem="cifar", variant="google", in_channels=1)
    again = on_meta(ResNet, **network.config)
    assert again.config == network.config
    assert shapes(again.state_dict()) == shapes(network.state_dict())


def test_the_authors_network_projects_in_every_group():
    for make, variant, projected in (
        (resnet18, "torchvision", [2, 3, 4]),
        (resnet18, "google", [1, 2, 3, 4]),
        (resnet50, "torchvision", [1, 2, 3, 4]),
        (resnet50, "google", [1, 2, 3, 4]),
    ):
        network = on_meta(make, variant=variant)
        blocks = {(g, i): b for g in (1, 2, 3, 4) for i, b in enumerate(network.get_submodule(f"layer{g}"))}
        assert [g for (g, i), b in blocks.items() if b.downsample is not None] == projected
        assert all(i == 0 for (g, i), b in blocks.items() if b.downsample is not None)


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_the_authors_residual_branches_start_at_zero(make):
    network = make(width=0.125, variant="google")
    last = "bn2" if make is resnet18 else "bn3"
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            expected = 0 if name.endswith(last) else 1
            assert (module.weight == expected).all(), name
    block = network.layer1[1]  # no projection
    given = images(2, block.conv1.in_channels, 8, 8)
    assert_close(block(given), given)


def test_the_authors_convolutions_start_from_a_cut_normal():
    torch.manual_seed(0)
    network = resnet18(variant="google")
    for convolution in (network.conv1, network.layer1[0].conv1, network.layer4[1].conv2):
        weight = convolution.weight.flatten()
        std = math.sqrt(1 / (convolution.in_channels * convolution.kernel_size[0] ** 2))
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(weight.mean().item()) < 0.03 * std
        assert weight.abs().max().item() <= 2 * std / 0.87962566 + 1e-7
        assert weight.abs().max().item() > 1.9 * std / 0.87962566


def test_the_authors_stem_of_selective_networks_is_three_small_convolutions():
    network = on_meta(resnet50, selective_kernel=True)
    kernels = [tuple(m.weight.shape) for m in network.conv1 if isinstance(m, nn.Conv2d)]
    assert kernels == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    assert [m.stride[0] for m in network.conv1 if isinstance(m, nn.Conv2d)] == [2, 1, 1]


def test_a_selective_network_with_cifar_stem_keeps_its_one_convolution():
    network = on_meta(resnet50, selective_kernel=True, stem="cifar")
    assert network.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_intermediate_features_are_those_of_the_layers(stem):
    network = trained(resnet50(width=0.125, stem=stem)).eval()
    seen = {}
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: seen.setdefault(name, out)
        )
    with torch.no_grad():
        pooled = network(images(2, 3, 64, 64))
        found = network.intermediate(images(2, 3, 64, 64), ["pooled", "stem", "layer1", "layer2", "layer3", "layer4"])
    assert list(found) == ["stem", "layer1", "layer2", "layer3", "layer4", "pooled"]
    assert_close(list(found.values()), [*seen.values(), pooled], rtol=0, atol=0)


def test_intermediate_features_cost_nothing_behind_the_last_one():
    network = resnet18(width=0.125)
    network.layer3.register_forward_hook(lambda *_: pytest.fail("layer3 was computed"))
    assert list(network.intermediate(images(2, 3, 32, 32), ["layer2"])) == ["layer2"]


@pytest.mark.parametrize(("names", "got"), [(["layer5", "layer1", "fc"], "['fc', 'layer5']"), ([], "[]")])
def test_intermediate_features_say_which_names_there_are(names, got):
    message = f"`names` must hold one or more of stem, layer1, layer2, layer3, layer4, pooled, got {got}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resnet18(width=0.125).intermediate(images(1, 3, 32, 32), names)


@pytest.mark.parametrize(("stem", "variant", "selective"), KINDS)
def test_resnet_in_channels_last_gives_the_same_features_and_stays_in_it(stem, variant, selective):
    torch.manual_seed(0)
    network = trained(resnet50(width=0.125, stem=stem, variant=variant, selective_kernel=selective)).double()
    batch = images(2, 3, 40, 40).double()
    expected = network(batch)
    network.to(memory_format=torch.channels_last)
    found = network.intermediate(batch.contiguous(memory_format=torch.channels_last), ["layer1", "layer4", "pooled"])
    assert_close(found["pooled"], expected)
    assert found["layer1"].is_contiguous(memory_format=torch.channels_last)
    assert found["layer4"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("stem", "variant", "selective"), KINDS)
def test_resnet_compiles_whole(stem, variant, selective):
    torch.manual_seed(0)
    make = resnet50 if selective else resnet18  # the smallest that has all parts
    network = trained(make(width=0.0625, stem=stem, variant=variant, selective_kernel=selective)).double()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")  # a break of the graph raises
    batch = images(2, 3, 32, 32).double()
    expected, found = network.eval()(batch), compiled.eval()(batch)
    assert_close(found, expected)
    found.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("make", [resnet18, resnet50])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "keras"}, "`variant` must be 'torchvision' or 'google', got 'keras'."),
        ({"width": math.nan}, "`width` must leave at least one channel of 64, got nan."),
        ({"width": math.inf}, "`width` must leave at least one channel of 64, got inf."),
        ({"width": 0.0}, "`width` must leave at least one channel of 64, got 0.0."),
        ({"width": -1.0}, "`width` must leave at least one channel of 64, got -1.0."),
        ({"stem": "mnist"}, "`stem` must be 'imagenet' or 'cifar', got 'mnist'."),
        ({"in_channels": 0}, "`in_channels` must be at least 1, got 0."),
    ],
)
def test_resnet_says_what_is_out_of_range(make, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**arguments)


def test_resnet_says_which_depths_there_are():
    with pytest.raises(ValueError, match=re.escape("`depth` must be one of 18, 34, 50, 101, 152, 200, got 26.")):
        ResNet(26)
