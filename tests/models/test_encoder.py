"""Any network as an encoder: what the classifier was given comes out, and nothing else changes."""

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision.models as tv
from cl_models import as_encoder, resnet18
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close


class Network(NamedTuple):
    """A network of a library, the names of its classifier and of the dropouts beside it, the width before it."""

    make: Callable[[], nn.Module]
    head: str
    dropouts: tuple[str, ...]
    feature_dim: int
    size: int = 32


def tiny_vit() -> nn.Module:
    network = tv.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=7
    )
    nn.init.normal_(network.heads.head.weight)  # torchvision starts it at zero, and all logits would be equal
    return network


def tiny_convnext() -> nn.Module:
    blocks = [tv.convnext.CNBlockConfig(16, 24, 1), tv.convnext.CNBlockConfig(24, None, 1)]
    return tv.ConvNeXt(blocks)


def timm_model(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **arguments)


TORCHVISION = {
    "torchvision resnet18": Network(tv.resnet18, "fc", (), 512),
    "torchvision resnet of bottlenecks": Network(
        lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=16), "fc", (), 2048
    ),
    "torchvision vit": Network(tiny_vit, "heads.head", (), 24),
    "torchvision convnext": Network(tiny_convnext, "classifier.2", (), 24),
    "torchvision efficientnet_b0": Network(tv.efficientnet_b0, "classifier.1", ("classifier.0",), 1280),
    "torchvision mobilenet_v3_small": Network(tv.mobilenet_v3_small, "classifier.3", ("classifier.2",), 1024),
    "torchvision densenet": Network(lambda: tv.DenseNet(block_config=(1, 1, 1, 1)), "classifier", (), 68),
    "torchvision swin": Network(lambda: tv.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4]), "head", (), 32),
}
TIMM = {
    "timm resnet18": Network(timm_model("resnet18"), "fc", (), 512),
    "timm resnet26": Network(timm_model("resnet26", channels=[16, 32, 32, 32]), "fc", (), 128),
    "timm convnext_atto": Network(timm_model("convnext_atto"), "head.fc", ("head.drop",), 320),
    "timm vit_tiny": Network(timm_model("vit_tiny_patch16_224", img_size=32, depth=2), "head", ("head_drop",), 192),
    "timm vit averaged": Network(timm_model("test_vit", img_size=32, global_pool="avg"), "head", ("head_drop",), 64),
    "timm efficientnet": Network(timm_model("test_efficientnet"), "classifier", (), 256),
    "timm byobnet": Network(timm_model("test_byobnet"), "head.fc", ("head.drop",), 256),
}
NETWORKS = TORCHVISION | TIMM


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name].make()


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


def kinds(module: nn.Module) -> dict[str, type]:
    return {name: type(part) for name, part in module.named_modules(remove_duplicate=False)}


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@torch.no_grad()
def features_of(encoder: nn.Module, batch: Tensor) -> Tensor:
    return copy.deepcopy(encoder).eval()(batch)


def given_to(module: nn.Module, name: str, batch: Tensor) -> Tensor:
    """What a forward of the whole module gives to one of its parts."""
    module, found = copy.deepcopy(module), []
    module.get_submodule(name).register_forward_pre_hook(lambda part, args: found.append(args[0].clone()))
    features_of(module, batch)
    (given,) = found
    return given


class Case(NamedTuple):
    """A network, what was true of it before, and the encoder that was made of it."""

    network: Network
    module: nn.Module
    batch: Tensor
    logits: Tensor
    state: dict[str, Tensor]
    kinds: dict[str, type]
    modes: dict[str, bool]
    encoder: nn.Module


@pytest.fixture(scope="module", params=NETWORKS)
def case(request) -> Case:
    network, module = NETWORKS[request.param], made(request.param)
    batch = images(3, 3, 32, 32)
    with torch.no_grad():
        module.train()(batch)  # moves the running statistics
        logits = module.eval()(batch)
    for index, part in enumerate(module.modules()):
        part.training = index % 3 == 0
    for index, tensor in enumerate(module.parameters()):
        tensor.requires_grad = index % 2 == 0
    before = copied(module), kinds(module), modes(module)
    return Case(network, module, batch, logits, *before, as_encoder(module, image_size=32))


def test_features_are_what_the_classifier_was_given(case):
    features = features_of(case.encoder, case.batch)
    assert features.shape == (3, case.network.feature_dim)
    assert case.encoder.feature_dim == case.network.feature_dim
    assert torch.equal(features, given_to(case.module, case.network.head, case.batch))


@pytest.mark.parametrize("case", TIMM, indirect=True)
def test_features_are_what_timm_gives_before_the_logits(case):
    module = copy.deepcopy(case.module).eval()
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(case.batch), pre_logits=True)
    assert torch.equal(features_of(case.encoder, case.batch), expected)


def test_only_the_classifier_and_its_dropout_become_identities(case):
    gone = {case.network.head, *case.network.dropouts}
    assert type(case.encoder) is type(case.module)
    assert kinds(case.encoder) == {name: nn.Identity if name in gone else kind for name, kind in case.kinds.items()}


def test_an_encoder_has_the_weights_of_the_network_under_their_names(case):
    head = {f"{case.network.head}.weight", f"{case.network.head}.bias"}
    state = case.encoder.state_dict()
    assert list(state) == [name for name in case.state if name not in head]
    assert_close(state, {name: case.state[name] for name in state}, rtol=0, atol=0)


def test_an_encoder_keeps_modes_and_frozen_weights(case):
    assert modes(case.encoder) == case.modes
    assert hooks(case.encoder) == 0
    frozen = {name: tensor.requires_grad for name, tensor in case.module.named_parameters()}
    for name, tensor in case.encoder.named_parameters():
        assert tensor.requires_grad == frozen[name]
        assert tensor.grad is None


def test_the_network_stays_as_it_was(case):
    assert kinds(case.module) == case.kinds
    assert modes(case.module) == case.modes
    assert hooks(case.module) == 0
    assert not hasattr(case.module, "feature_dim")
    assert_close(case.module.state_dict(), case.state, rtol=0, atol=0)
    assert torch.equal(features_of(case.module, case.batch), case.logits)


def test_an_encoder_shares_no_memory_with_the_network(case):
    theirs = {tensor.data_ptr() for tensor in case.module.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in case.encoder.state_dict().values()}


def test_random_numbers_go_on_as_if_nothing_had_happened():
    module = timm.create_model("test_resnet", drop_rate=0.5)  # a dropout as a function, also while it trains
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    as_encoder(module, image_size=32)
    assert torch.equal(torch.rand(4), expected)


def test_a_network_is_run_without_gradients():
    seen = []
    as_encoder(Own(lambda self, x: seen.append(torch.is_grad_enabled()) or self.fc(x)), image_size=8)
    assert seen
    assert not any(seen)


def test_an_encoder_can_be_trained():
    encoder = as_encoder(made("torchvision convnext"), image_size=32)
    encoder.train()(images(2, 3, 32, 32)).sum().backward()
    assert all(tensor.grad is not None for tensor in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "test_efficientnet", "test_vit"])
def test_a_timm_network_without_classes_is_an_encoder_as_it_is(name):
    size = {"img_size": 32} if name == "test_vit" else {}
    module = timm.create_model(name, num_classes=0, **size)
    encoder = as_encoder(module, image_size=32)
    assert kinds(encoder) == kinds(module)
    assert encoder.feature_dim == module.num_features
    assert torch.equal(features_of(encoder, images(2, 3, 32, 32)), features_of(module, images(2, 3, 32, 32)))


def test_a_feature_dim_that_is_an_axis_does_not_make_an_encoder():
    module = Own(lambda self, x: self.fc(x))
    module.feature_dim = -1  # timm's Sequencer and others: channels are last
    assert as_encoder(module, image_size=8).feature_dim == 6


def test_our_encoders_are_returned_themselves():
    encoder = resnet18(width=0.125)
    assert as_encoder(encoder) is encoder


def test_an_encoder_of_an_encoder_is_itself():
    encoder = as_encoder(made("torchvision vit"), image_size=32)
    assert as_encoder(encoder) is encoder


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_width_is_found_in_any_precision(dtype):
    encoder = as_encoder(made("torchvision vit").to(dtype), image_size=32)
    assert encoder.feature_dim == 24
    assert {tensor.dtype for tensor in encoder.parameters()} == {dtype}


def test_the_width_is_found_without_memory():
    with torch.device("meta"):
        module = tv.convnext_tiny()
    assert as_encoder(module).feature_dim == 768


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_width_is_found_on_a_gpu():
    encoder = as_encoder(made("torchvision mobilenet_v3_small").cuda(), image_size=32)
    assert encoder.feature_dim == 1024
    assert {tensor.device.type for tensor in encoder.parameters()} == {"cuda"}


# Networks of one's own: a convolution of 6 channels, pooled, and what comes after it.


def pooled(*after: nn.Module, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *after)


class Own(nn.Module):
    """`pooled`, and a function of its output and of a layer `fc` of 6 features to 6."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.fc, self.function = pooled(), nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.body(x))


@pytest.mark.parametrize(
    "after",
    [
        [],
        [nn.Linear(6, 5), nn.ReLU()],
        [nn.Linear(6, 5), nn.ReLU(inplace=True)],
        [nn.Linear(6, 5), nn.BatchNorm1d(5)],
        [nn.Linear(6, 5), nn.LayerNorm(5), nn.Identity()],
        [nn.Linear(6, 5), nn.RMSNorm(5), nn.Dropout()],
        [nn.Linear(6, 5), nn.GroupNorm(1, 5)],
    ],
    ids=lambda after: "-".join(["pool", *[type(part).__name__ for part in after]]),
)
def test_a_network_that_ends_in_no_linear_is_kept_whole(after):
    module = pooled(*after)
    encoder = as_encoder(module, image_size=8)
    assert encoder is not module
    assert kinds(encoder) == kinds(module)
    assert encoder.feature_dim == (5 if after else 6)


def test_a_norm_with_its_activation_inside_is_kept():
    module = pooled(nn.Linear(6, 5), nn.Unflatten(1, (5, 1, 1)), timm.layers.BatchNormAct2d(5), nn.Flatten())
    assert kinds(as_encoder(module, image_size=8)) == kinds(module)


def test_dropouts_on_both_sides_of_the_classifier_go_with_it():
    encoder = as_encoder(pooled(nn.Dropout(0.9), nn.Linear(6, 5), nn.Dropout(0.9)), image_size=8)
    assert encoder.train()(images(2, 3, 8, 8)).ne(0).all()
    assert kinds(encoder)["3"] is kinds(encoder)["4"] is kinds(encoder)["5"] is nn.Identity


def test_a_classifier_behind_which_a_layer_does_nothing_is_taken_off():
    encoder = as_encoder(pooled(nn.Linear(6, 5), timm.layers.DropPath()), image_size=8)
    assert kinds(encoder)["3"] is nn.Identity
    assert encoder.feature_dim == 6


def test_a_dropout_that_also_serves_elsewhere_stays():
    module = Own(lambda self, x: self.fc(self.drop(self.drop(x).relu())))
    module.drop = nn.Dropout()
    encoder = as_encoder(module, image_size=8)
    assert isinstance(encoder.drop, nn.Dropout)
    assert isinstance(encoder.fc, nn.Identity)


def test_a_dropout_further_up_stays():
    encoder = as_encoder(pooled(nn.Linear(6, 5), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(5, 2)), image_size=8)
    assert isinstance(encoder[4], nn.Dropout)
    assert encoder.feature_dim == 5


def test_a_classifier_of_two_names_is_taken_off_under_both():
    module = Own(lambda self, x: self.fc(x))
    module.classifier = module.fc
    encoder = as_encoder(module, image_size=8)
    assert list(encoder.state_dict()) == ["body.0.weight", "body.0.bias"]


def test_a_classifier_whose_weight_is_parametrized_is_taken_off():
    module = Own(lambda self, x: self.fc(x))
    weight_norm(module.fc)
    encoder = as_encoder(module, image_size=8)
    assert isinstance(encoder.fc, nn.Identity)
    assert encoder.feature_dim == 6


def test_a_classifier_of_every_token_is_taken_off_before_one_is_picked():
    module = Own(lambda self, x: self.fc(torch.stack([x, 2 * x], dim=1))[:, 1])
    encoder = as_encoder(module, image_size=8)
    assert_close(features_of(encoder, images(2, 3, 8, 8)), 2 * features_of(module.body, images(2, 3, 8, 8)))


def test_the_head_can_be_named():
    encoder = as_encoder(pooled(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), head="5", image_size=8)
    assert kinds(encoder)["3"] is nn.Linear
    assert kinds(encoder)["5"] is nn.Identity


def test_a_container_can_be_named_as_head():
    encoder = as_encoder(tv.mobilenet_v3_small(), head="classifier", image_size=32)
    assert encoder.feature_dim == 576


def test_a_convolution_can_be_named_as_head():
    module = tv.squeezenet1_1()
    encoder = as_encoder(module, head="classifier.1", image_size=32)
    assert encoder.feature_dim == 512


def test_all_can_be_kept():
    module = pooled(nn.Linear(6, 5))
    encoder = as_encoder(module, head=None, image_size=8)
    assert encoder is not module
    assert kinds(encoder) == kinds(module)
    assert encoder.feature_dim == 5


def test_the_head_of_a_module_with_a_feature_dim_can_be_named():
    module = Own(lambda self, x: self.fc(x))
    module.feature_dim = 6
    assert isinstance(as_encoder(module, head="fc", image_size=8).fc, nn.Identity)


def test_channels_are_those_of_the_first_convolution():
    assert as_encoder(pooled(nn.Linear(6, 5), channels=1), image_size=8).feature_dim == 6


def test_a_network_without_convolution_is_told_its_channels():
    module = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 5), nn.ReLU(), nn.Linear(5, 3))
    assert as_encoder(module, image_size=8, in_channels=2).feature_dim == 5


def test_a_fault_of_the_network_keeps_its_traceback():
    with pytest.raises(KeyError, match="nowhere"):
        as_encoder(Own(lambda self, x: {}["nowhere"]), image_size=8)


AMBIGUOUS = "`head` must be the dotted name of the classifier of {}, or None to keep all of it, got 'auto': {}."
REFUSED_HEADS = {
    "convolution": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1), nn.Flatten()),
        ("Sequential", "Conv2d '1' makes its output"),
    ),
    "own layer": (
        lambda: pooled(nn.PReLU()),
        ("Sequential", "PReLU '3' makes its output"),
    ),
    "softmax": (
        lambda: pooled(nn.Linear(6, 5), nn.Softmax(dim=1)),
        ("Sequential", "Softmax '4' makes its output"),
    ),
    "log-softmax": (
        lambda: pooled(nn.Linear(6, 5), nn.LogSoftmax(dim=1)),
        ("Sequential", "LogSoftmax '4' makes its output"),
    ),
    "two heads": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=8, patch_size=4, depth=1),
        ("VisionTransformerDistilled", "no single layer makes its output"),
    ),
    "function": (lambda: Own(lambda self, x: self.fc(x).relu()), ("Own", "no single layer makes its output")),
    "function in place": (
        lambda: Own(lambda self, x: functional.relu(self.fc(x), inplace=True)),
        ("Own", "no single layer makes its output"),
    ),
    "function in the memory of the classifier": (
        lambda: Own(lambda self, x: self.fc(x).mul(2).add(1)),
        ("Own", "no single layer makes its output"),
    ),
    "function and Identity": (
        lambda: nn.Sequential(Own(lambda self, x: self.fc(x).relu()), nn.Identity(), nn.Dropout(), nn.Flatten()),
        ("Sequential", "no single layer makes its output"),
    ),
    "classifier that runs twice": (
        lambda: Own(lambda self, x: self.fc(self.fc(x))),
        ("Own", "Linear 'fc' makes its output, but runs 2 times"),
    ),
    "part of a classifier": (
        lambda: Own(lambda self, x: self.fc(x)[:, :4]),
        ("Own", "its output is a part of what Linear 'fc' makes"),
    ),
}


@pytest.mark.parametrize("kind", REFUSED_HEADS)
def test_a_head_that_cannot_be_told_is_asked_for(kind):
    make, found = REFUSED_HEADS[kind]
    with pytest.raises(ValueError, match=f"^{re.escape(AMBIGUOUS.format(*found))}$"):
        as_encoder(make(), image_size=8)


def test_a_single_layer_is_no_network():
    with pytest.raises(ValueError, match=re.escape(AMBIGUOUS.format("Linear", "it is a single layer"))):
        as_encoder(nn.Linear(8, 2), image_size=8, in_channels=3)


NO_FEATURES = "`module` must turn images into features (2, d), floating point, got "
POOL = "nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten()) makes maps (n, d, h, w) features."
TOKENS = "a token or the mean of all, taken in a module of your own around it, makes tokens (n, t, d) features."
AUXILIARY = "build it without auxiliary outputs, or return one tensor from a module of your own around it."
ROWS = "one row of numbers per image is what is needed."
NOT_FEATURES = {
    "map": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), f"torch.float32 of shape (2, 6, 6, 6): {POOL}"),
    "map of one position": (lambda: pooled()[:2], f"torch.float32 of shape (2, 6, 1, 1): {POOL}"),
    "tokens": (
        lambda: timm.create_model("test_vit", img_size=8, patch_size=4, global_pool="", num_classes=0),
        f"torch.float32 of shape (2, 5, 64): {TOKENS}",
    ),
    "classified tokens": (
        lambda: Own(lambda self, x: self.fc(x[:, None])),
        f"torch.float32 of shape (2, 1, 6): {TOKENS}",
    ),
    "tuple": (lambda: Own(lambda self, x: (x, x)), f"a tuple: {AUXILIARY}"),
    "dict": (lambda: Own(lambda self, x: {"features": x}), f"a dict: {AUXILIARY}"),
    "one number for all": (lambda: pooled(nn.Flatten(0)), f"torch.float32 of shape (12,): {ROWS}"),
    "other images": (
        lambda: pooled(nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1)),
        f"torch.float32 of shape (4, 3): {ROWS}",
    ),
    "classes": (lambda: Own(lambda self, x: x.round().long()), f"torch.int64 of shape (2, 6): {ROWS}"),
    "tuple in training": (
        lambda: Own(lambda self, x: (x, x) if self.training else self.fc(x)),
        f"a tuple in training: {AUXILIARY}",
    ),
}


@pytest.mark.parametrize("kind", NOT_FEATURES)
def test_what_is_no_features_is_refused_with_advice(kind):
    make, found = NOT_FEATURES[kind]
    head = None if kind in ("classes", "other images") else "auto"
    with pytest.raises(ValueError, match=f"^{re.escape(NO_FEATURES + found)}$"):
        as_encoder(make(), head=head, image_size=8)


def test_the_advice_for_maps_makes_an_encoder():
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    encoder = as_encoder(nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=8)
    assert encoder.feature_dim == 6


def test_auxiliary_classifiers_of_torchvision_are_refused():
    message = re.escape(NO_FEATURES + f"a GoogLeNetOutputs in training: {AUXILIARY}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        as_encoder(tv.GoogLeNet(init_weights=False), image_size=64)


SHAPE = "`module` must take images of shape {}, which come of `image_size` and `in_channels`; {} raised {}"


def test_images_of_the_wrong_size_are_named():
    start = SHAPE.format("(2, 3, 40, 40)", "VisionTransformer", "AssertionError('Wrong image height! Expected 32")
    with pytest.raises(ValueError, match=f"^{re.escape(start)}"):
        as_encoder(made("torchvision vit"), image_size=40)


def test_images_of_the_wrong_channels_are_named():
    start = SHAPE.format("(2, 2, 8, 8)", "Sequential", "RuntimeError(")
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.*2 channels"):
        as_encoder(pooled(), image_size=8, in_channels=2)


def test_images_are_of_224_pixels_unless_told():
    with pytest.raises(ValueError, match=re.escape("(2, 3, 224, 224)")):
        as_encoder(made("torchvision vit"))


def test_a_network_that_cannot_do_without_its_head_is_refused():
    start = SHAPE.format("(2, 3, 8, 8)", "Own", """AttributeError("'Identity' object has no attribute 'weight'").""")
    start = start.replace("`module`", "`module` without fc")
    with pytest.raises(ValueError, match=f"^{re.escape(start)}"):
        as_encoder(Own(lambda self, x: self.fc(x.to(self.fc.weight.dtype))), image_size=8)


@pytest.mark.parametrize("head", ["classifier", "fc.1", ""])
def test_a_head_that_is_not_there_is_refused_with_those_that_are(head):
    message = f"`head` must be the dotted name of a submodule of Own, got {head!r}; its children: body, fc."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_encoder(Own(lambda self, x: x), head=head, image_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size` must be at least 1, got 0."),
        ({"in_channels": 0}, "`in_channels` must be at least 1, got 0."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_encoder(pooled(), **arguments)


def test_a_network_without_convolution_asks_for_its_channels():
    message = "`in_channels` must be given for a module without nn.Conv2d, got None."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), image_size=8)
