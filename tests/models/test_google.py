"""The SimCLR authors' checkpoints: what is in the files is what the modules compute with, and nothing else loads."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import _bundle
import pytest
import torch
from _bundle import data_file, write_bundle
from cl_models import GoogleSimCLR, ProjectionHead, ResNet, load_google_simclr
from cl_models._crc32c import crc32c
from cl_models._google import map_variables
from cl_models._tensor_bundle import read_index, read_tensor
from torch import Tensor, nn
from torch.testing import assert_close

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# depth, stem, selective kernels; not small stems with selective kernels in basic blocks, which look like those without
KINDS = [
    (depth, stem, selective)
    for depth in (18, 34, 50)
    for stem in ("imagenet", "cifar")
    for selective in (False, True)
    if depth == 50 or not selective or stem == "imagenet"
]


def layers(depth: int, *, stem: str, selective: bool) -> tuple[list[str], list[str]]:
    """Our names of convolutions and of BatchNorms in the order in which the authors' code creates them."""
    convolutions, norms = ["conv1"], ["bn1"]
    if selective and stem == "imagenet":
        convolutions, norms = ["conv1.0", "conv1.3", "conv1.6"], ["conv1.1", "conv1.4", "bn1"]
    for group, count in enumerate(BLOCKS[depth]):
        for index in range(count):
            block = f"layer{group + 1}.{index}."
            if index == 0:
                convolutions.append(block + ("downsample.1" if selective else "downsample.0"))
                norms.append(block + ("downsample.2" if selective else "downsample.1"))
            if depth in (18, 34):
                convolutions += [block + "conv1", block + "conv2"]
                norms += [block + "bn1", block + "bn2"]
            elif selective:
                convolutions += [
                    *(block + "conv1", block + "conv2.conv", block + "conv2.reduce", block + "conv2.expand"),
                    block + "conv3",
                ]
                norms += [block + "bn1", block + "conv2.bn", block + "conv2.reduce_bn", block + "bn3"]
            else:
                convolutions += [block + "conv1", block + "conv2", block + "conv3"]
                norms += [block + "bn1", block + "bn2", block + "bn3"]
    return convolutions, norms


def variables(model: GoogleSimCLR, *, scope: str = "nl_{}") -> dict[str, Tensor]:
    """The modules' tensors as the authors' code would write them, in order of creation."""
    config, state, found = model.encoder.config, model.encoder.state_dict(), {}
    convolutions, norms = layers(config["depth"], stem=config["stem"], selective=config["selective_kernel"])
    for number, name in enumerate(convolutions):
        suffix = "" if number == 0 else f"_{number}"
        found[f"base_model/conv2d{suffix}/kernel"] = state[f"{name}.weight"].permute(2, 3, 1, 0)
    for number, name in enumerate(norms):
        at = "base_model/batch_normalization" + ("" if number == 0 else f"_{number}")
        found[f"{at}/gamma"], found[f"{at}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]
        found[f"{at}/moving_mean"] = state[f"{name}.running_mean"]
        found[f"{at}/moving_variance"] = state[f"{name}.running_var"]
    linear, norm = [], []
    for module in model.projector.layers if model.projector is not None else []:
        linear += [module] if isinstance(module, nn.Linear) else []
        norm += [module] if isinstance(module, nn.BatchNorm1d) else []
    for number in range(len(linear)):
        at = "head_contrastive/" + scope.format(number)
        found[f"{at}/dense/kernel"] = linear[number].weight.detach().t()
        found[f"{at}/batch_normalization/gamma"] = norm[number].weight.detach()
        if number < len(linear) - 1:
            found[f"{at}/batch_normalization/beta"] = norm[number].bias.detach()
        found[f"{at}/batch_normalization/moving_mean"] = norm[number].running_mean
        found[f"{at}/batch_normalization/moving_variance"] = norm[number].running_var
    if model.classifier is not None:
        found["head_supervised/linear_layer/dense/kernel"] = model.classifier.weight.detach().t()
        found["head_supervised/linear_layer/dense/bias"] = model.classifier.bias.detach()
    return found


def source(
    depth: int = 18,
    *,
    stem: str = "imagenet",
    selective: bool = False,
    width: float = 0.0625,
    in_channels: int = 3,
    head: int = 0,
    classes: int = 0,
) -> GoogleSimCLR:
    """A network no tensor of which is as it was made."""
    torch.manual_seed(depth)
    encoder = ResNet(
        depth, width=width, stem=stem, variant="google", selective_kernel=selective, in_channels=in_channels
    )
    dim = encoder.feature_dim
    projector = ProjectionHead(dim, dim, 8, layers=head) if head else None
    model = GoogleSimCLR(encoder, projector, nn.Linear(dim, classes) if classes else None)
    for module in (m for part in model if part is not None for m in part.eval().modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.copy_(0.5 + torch.rand(tensor.shape))
    return model


def on_meta(depth: int, **arguments) -> GoogleSimCLR:
    with torch.device("meta"):
        encoder = ResNet(depth, variant="google", **arguments)
        return GoogleSimCLR(encoder, ProjectionHead(encoder.feature_dim, encoder.feature_dim, 128, layers=3), None)


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def written(folder: Path, tensors: dict[str, Tensor], **arguments) -> Path:
    write_bundle(folder / "model.ckpt-7", tensors, **arguments)
    return folder / "model.ckpt-7"


def data(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def message_of(call: Callable[[], object], error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def assert_same(found: GoogleSimCLR, expected: GoogleSimCLR) -> None:
    """The same modules, to the bit of what they compute."""
    images = torch.rand(2, expected.encoder.config["in_channels"], 40, 40, generator=torch.Generator().manual_seed(0))
    assert found.encoder.config == expected.encoder.config
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        features, expected_features = found.encoder(images), expected.encoder(images)
        assert_close(features, expected_features, rtol=0, atol=0)
        assert features.std() > 0
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            if ours is not None:
                assert_close(ours(features), theirs(features), rtol=0, atol=0)


# the mapping


@pytest.mark.parametrize(("depth", "stem", "selective"), KINDS)
def test_a_written_network_comes_back_bit_by_bit(tmp_path, depth, stem, selective):
    model = source(depth, stem=stem, selective=selective)
    assert_same(load_google_simclr(written(tmp_path, variables(model))), model)


@pytest.mark.parametrize("head", [1, 2, 3])
@pytest.mark.parametrize("classes", [0, 10])
def test_heads_come_back_bit_by_bit(tmp_path, head, classes):
    model = source(head=head, classes=classes, width=0.125)
    assert_same(load_google_simclr(written(tmp_path, variables(model))), model)


def test_the_linear_head_has_a_name_of_its_own(tmp_path):
    model = source(head=1)
    prefix = written(tmp_path, variables(model, scope="l_{}"))
    assert "head_contrastive/l_0/dense/kernel" in read_index(prefix)
    assert_same(load_google_simclr(prefix), model)


def test_a_classifier_may_come_without_a_projector_as_in_simclr_v1(tmp_path):
    model = source(classes=10)
    found = load_google_simclr(str(written(tmp_path, variables(model))))  # a path may be text
    assert found.projector is None
    assert_same(found, model)


def test_images_may_have_other_channels(tmp_path):
    model = source(in_channels=1)
    assert_same(load_google_simclr(written(tmp_path, variables(model))), model)


def test_what_training_keeps_is_left_out(tmp_path):
    model = source(head=3, classes=10)
    tensors = variables(model)
    slots = {f"{name}/{slot}": -t for name, t in tensors.items() for slot in ("Momentum", "Adam", "Adam_1")}
    averages = {f"ema_model/{name}": 2 * t for name, t in tensors.items()}
    steps = {"global_step": torch.tensor(250228), "beta1_power": torch.tensor(0.9), "beta2_power": torch.tensor(0.999)}
    assert_same(load_google_simclr(written(tmp_path, tensors | slots | averages | steps)), model)


def test_loaded_modules_are_in_evaluation_and_can_be_trained(tmp_path):
    found = load_google_simclr(written(tmp_path, variables(source(head=2, classes=3))))
    for module in found:
        assert not any(part.training for part in module.modules())
        assert all(p.requires_grad and p.is_contiguous() and p.dtype == torch.float32 for p in module.parameters())
    features = found.encoder.train()(torch.rand(4, 3, 32, 32))
    (found.projector.train()(features).sum() + found.classifier(features).sum()).backward()
    assert all(p.grad is not None for module in found for p in module.parameters())


def test_loading_draws_no_random_numbers(tmp_path):
    prefix = written(tmp_path, variables(source(head=2, classes=3)))
    before = torch.get_rng_state()
    load_google_simclr(prefix)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_leaves_out_the_initialisation_that_makes_torch_import_for_seconds(monkeypatch):
    shapes = shapes_of(variables(source(head=3, classes=3)))
    monkeypatch.setattr(Tensor, "normal_", lambda *_, **__: pytest.fail("weights were initialised"))
    map_variables(shapes)


def test_loading_goes_to_the_cpu_whatever_the_default_device_is(tmp_path):
    model = source(head=2, classes=3)
    prefix = written(tmp_path, variables(model))
    with torch.device("meta"):
        found = load_google_simclr(prefix)
    assert_same(found, model)


@pytest.mark.parametrize(
    ("depth", "width", "selective"),
    [(18, 1, False), (34, 2, False), (50, 1, True), (50, 4, False), (101, 2, True), (152, 3, True), (200, 2, False)],
)
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_the_architecture_follows_from_names_and_shapes(depth, width, selective, stem):
    expected = on_meta(depth, width=width, selective_kernel=selective, stem=stem)
    modules, names = map_variables(shapes_of(variables(expected)))
    assert modules.encoder.config == expected.encoder.config
    assert modules.projector.dims == expected.projector.dims
    assert sum(map(len, names)) == len({name for part in names for name in part.values()}) == len(variables(expected))


# Out of lists that the authors' code made, TensorFlow 2.21 in its 1.x mode: proof that `layers` above has their order.
LISTED = {
    False: {
        "base_model/conv2d/kernel": (7, 7, 3, 64),
        "base_model/conv2d_1/kernel": (1, 1, 64, 256),
        "base_model/conv2d_2/kernel": (1, 1, 64, 64),
        "base_model/conv2d_3/kernel": (3, 3, 64, 64),
        "base_model/conv2d_4/kernel": (1, 1, 64, 256),
        "base_model/conv2d_5/kernel": (1, 1, 256, 64),
        "base_model/conv2d_11/kernel": (1, 1, 256, 512),
        "base_model/conv2d_12/kernel": (1, 1, 256, 128),
        "base_model/conv2d_52/kernel": (1, 1, 512, 2048),
        "base_model/batch_normalization_1/gamma": (256,),
        "base_model/batch_normalization_2/moving_variance": (64,),
        "base_model/batch_normalization_52/moving_mean": (2048,),
        "head_contrastive/nl_0/batch_normalization/beta": (2048,),
        "head_contrastive/nl_2/dense/kernel": (2048, 128),
    },
    True: {
        "base_model/conv2d/kernel": (3, 3, 3, 32),
        "base_model/conv2d_1/kernel": (3, 3, 32, 32),
        "base_model/conv2d_2/kernel": (3, 3, 32, 64),
        "base_model/conv2d_3/kernel": (1, 1, 64, 256),
        "base_model/conv2d_4/kernel": (1, 1, 64, 64),
        "base_model/conv2d_5/kernel": (3, 3, 64, 128),
        "base_model/conv2d_6/kernel": (1, 1, 64, 32),
        "base_model/conv2d_7/kernel": (1, 1, 32, 128),
        "base_model/conv2d_8/kernel": (1, 1, 64, 256),
        "base_model/conv2d_9/kernel": (1, 1, 256, 64),
        "base_model/batch_normalization_1/gamma": (32,),
        "base_model/batch_normalization_3/gamma": (256,),
        "base_model/batch_normalization_6/beta": (32,),
        "base_model/batch_normalization_7/gamma": (256,),
        "base_model/batch_normalization_8/gamma": (64,),
        "head_contrastive/nl_2/batch_normalization/moving_variance": (128,),
    },
}


@pytest.mark.parametrize(("selective", "count"), [(False, 279), (True, 385)])
def test_resnet50_has_the_variables_that_the_authors_code_lists(selective, count):
    shapes = shapes_of(variables(on_meta(50, selective_kernel=selective)))
    assert len(shapes) == count
    assert {name: shapes[name] for name in LISTED[selective]} == LISTED[selective]
    assert "head_contrastive/nl_2/batch_normalization/beta" not in shapes


def test_resnet18_has_the_variables_that_the_authors_code_lists():
    shapes = shapes_of(variables(on_meta(18)))
    assert len(shapes) == 119
    assert [shapes[f"base_model/conv2d_{k}/kernel"] for k in (1, 2, 3)] == [(1, 1, 64, 64), *[(3, 3, 64, 64)] * 2]
    assert "base_model/batch_normalization_20/moving_variance" in shapes


def changed(shapes: dict[str, tuple[int, ...]], **changes) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in (shapes | changes).items() if shape is not None}


FIT = "`prefix` must lead to "
CONVOLUTIONS = FIT + "a ResNet of the SimCLR authors' code, with a number of convolutions among "


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "base_model/conv2d_5/kernel",
            (3, 3, 4, 5),
            FIT + "shape (3, 3, 4, 4) for 'base_model/conv2d_5/kernel', the checkpoint has shape (3, 3, 4, 5).",
        ),
        (
            "base_model/conv2d/kernel",
            (5, 5, 3, 4),
            FIT + "shape (7, 7, 3, 4) for 'base_model/conv2d/kernel', the checkpoint has shape (5, 5, 3, 4).",
        ),
        (
            "base_model/batch_normalization_7/moving_mean",
            None,
            FIT + "shape (8,) for 'base_model/batch_normalization_7/moving_mean', the checkpoint has nothing.",
        ),
        (
            "head_contrastive/nl_1/dense/kernel",
            (16, 32),
            FIT + "shape (32, 32) for 'head_contrastive/nl_1/dense/kernel', the checkpoint has shape (16, 32).",
        ),
        (
            "head_contrastive/nl_0/batch_normalization/beta",
            (1, 32),
            FIT + "shape (32,) for 'head_contrastive/nl_0/batch_normalization/beta', the checkpoint has shape (1, 32).",
        ),
        (
            "head_supervised/linear_layer/dense/bias",
            None,
            FIT + "shape (10,) for 'head_supervised/linear_layer/dense/bias', the checkpoint has nothing.",
        ),
        (
            "base_model/conv2d_3/kernel",
            (3, 3, 4),
            "'base_model/conv2d_3/kernel' must have four dimensions, got (3, 3, 4).",
        ),
        (
            "head_supervised/linear_layer/dense/kernel",
            (32,),
            "'head_supervised/linear_layer/dense/kernel' must have two dimensions, got (32,).",
        ),
        (
            "head_contrastive/nl_2/dense/kernel",
            (32, 8, 1),
            "'head_contrastive/nl_2/dense/kernel' must have two dimensions, got (32, 8, 1).",
        ),
        (
            "base_model/conv2d_21/kernel",
            (3, 3, 32, 32),
            CONVOLUTIONS + "21 (ResNet-18), 37 (ResNet-34), got 22.",
        ),
        (
            "base_model/conv2d_9/kernel",
            None,
            FIT + "a checkpoint of the SimCLR authors' code, which has 'base_model/conv2d_9/kernel'; this one has 120 "
            "other variables, such as 'base_model/batch_normalization/beta', 'base_model/batch_normalization/gamma', "
            "'base_model/batch_normalization/moving_mean' and 117 more.",
        ),
        (
            "head_contrastive/nl_2/batch_normalization/beta",
            (8,),
            FIT + "variables that all have a place in a ResNet, its projection head or a linear classifier, 1 of 122 "
            "have none: 'head_contrastive/nl_2/batch_normalization/beta'.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, shape, message):
    shapes = shapes_of(variables(source(head=3, classes=10)))
    assert message_of(lambda: map_variables(changed(shapes, **{name: shape}))) == message


@pytest.mark.parametrize(
    ("depth", "selective", "counts"),
    [
        (50, False, "53 (ResNet-50), 104 (ResNet-101), 155 (ResNet-152), 203 (ResNet-200), got 52."),
        (50, True, "87 (ResNet-50), 172 (ResNet-101), 257 (ResNet-152), 337 (ResNet-200), got 86."),
    ],
)
def test_a_number_of_convolutions_that_no_resnet_has_is_refused(depth, selective, counts):
    shapes = shapes_of(variables(source(depth, selective=selective)))
    del shapes[f"base_model/conv2d_{86 if selective else 52}/kernel"]
    assert message_of(lambda: map_variables(shapes)) == CONVOLUTIONS + counts


@pytest.mark.parametrize("kernels", range(1, 5))
def test_a_stem_alone_is_refused(kernels):
    shapes = {f"base_model/conv2d{f'_{k}' if k else ''}/kernel": (3, 3, 4, 4) for k in range(kernels)}
    assert message_of(lambda: map_variables(shapes)).startswith(CONVOLUTIONS)


def test_what_is_left_over_is_listed():
    shapes = shapes_of(variables(source()))
    others = {
        "base_model/conv2d/bias": (4,),
        "base_model/conv2d/kernel/RMSProp": (7, 7, 3, 4),
        "base_model/conv2d_99999/kernel/Momentum": (1,),  # a slot of nothing
        "queue": (65536, 128),
    }
    expected = "4 of 109 have none: " + ", ".join(map(repr, sorted(others))) + "."
    assert message_of(lambda: map_variables(shapes | others)).endswith(expected)


def test_of_very_many_left_over_twenty_are_listed():
    shapes = shapes_of(variables(source())) | {f"other_{index:03d}": (1,) for index in range(100)}
    message = message_of(lambda: map_variables(shapes))
    assert "100 of 205 have none" in message
    assert message.endswith("'other_019' and 80 more.")
    assert message.count("other_") == 20


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    prefix = written(tmp_path, {"dense/kernel": torch.ones(2, 3), "dense/bias": torch.ones(3)})
    assert message_of(lambda: load_google_simclr(prefix)) == (
        "`prefix` must lead to a checkpoint of the SimCLR authors' code, which has 'base_model/conv2d/kernel'; this "
        "one has 2 other variables, such as 'dense/bias', 'dense/kernel'."
    )


@pytest.mark.parametrize(
    "name",
    ["_CHECKPOINTABLE_OBJECT_GRAPH", "model/conv/kernel/.ATTRIBUTES/VARIABLE_VALUE", "save/.ATTRIBUTES/VARIABLE_VALUE"],
)
def test_a_checkpoint_of_tensorflow_2_is_refused_as_such(tmp_path, name):
    prefix = written(tmp_path, variables(source()) | {name: torch.ones(2)})
    assert message_of(lambda: load_google_simclr(prefix)) == (
        "`prefix` must lead to a checkpoint in TensorFlow 1's format, which names its variables as in "
        f"'base_model/conv2d/kernel'; this is one of TensorFlow 2's, with {name!r}."
    )


# the files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", 0),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_has_its_check_values(content, expected):
    assert crc32c(data(content)) == expected == _bundle.crc32c(content)


@pytest.mark.parametrize("size", [*range(1, 40), 1000, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 5])
def test_crc32c_is_that_of_byte_by_byte(size):
    content = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    assert crc32c(content) == _bundle.crc32c(content.numpy().tobytes())


@pytest.fixture
def small(tmp_path) -> Path:
    """A checkpoint of a few tensors, in several blocks and two data files."""
    torch.manual_seed(0)
    tensors = {f"scope/layer_{index}/weights": torch.rand(index + 1, 3) for index in range(5)}
    prefix = tmp_path / "small"
    write_bundle(prefix, tensors | {"steps": torch.tensor([7])}, shards=2, block_size=100)
    return prefix


def everything(prefix: Path) -> dict[str, Tensor]:
    return {name: read_tensor(name, entry) for name, entry in read_index(prefix).items() if name != "steps"}


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("block_size", [1, 100, 700, 1 << 18])
def test_a_bundle_of_any_blocks_and_files_is_read(tmp_path, shards, block_size):
    torch.manual_seed(0)
    tensors = {f"{scope}/{index}/é": torch.rand(index % 4 + 1, 2) for scope in "ab" for index in range(40)}
    tensors |= {"scalar": torch.tensor(3.0)}
    write_bundle(tmp_path / "b", tensors, shards=shards, block_size=block_size)
    assert_close(everything(tmp_path / "b"), dict(sorted(tensors.items())), rtol=0, atol=0)


def test_several_data_files_make_one_network(tmp_path):
    model = source()
    assert_same(load_google_simclr(written(tmp_path, variables(model), shards=3)), model)


INDEX = "`prefix` must lead to a whole and uncompressed index of a TensorFlow checkpoint, {}.index is none: {}."


def test_an_index_that_is_cut_off_anywhere_is_refused(small):
    path = Path(f"{small}.index")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        reason = "it does not end as one, so it is cut off or something else"
        assert message_of(lambda: read_index(small)) == INDEX.format(small, reason)


def test_an_index_with_a_turned_bit_is_refused_or_the_same(small):
    """The same: in what is padding, and in a block that says nothing."""
    path = Path(f"{small}.index")
    whole, expected = path.read_bytes(), read_index(small)
    unnoticed = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert read_index(small) == expected
        except ValueError as error:
            assert str(error).startswith(INDEX.format(small, "")[:-1])  # noqa: PT017
        else:
            unnoticed += 1
    assert unnoticed <= 13 + 40  # the empty block and its trailer, and the footer without the magic number


def test_a_turned_bit_in_an_index_is_named(small):
    path = Path(f"{small}.index")
    content = bytearray(path.read_bytes())
    content[3] ^= 16
    path.write_bytes(content)
    reason = "the checksum of a block is wrong, so it is damaged"
    assert message_of(lambda: load_google_simclr(small)) == INDEX.format(small, reason)


def test_a_file_of_something_else_is_no_index(tmp_path):
    (tmp_path / "text.index").write_text("word " * 100)
    reason = "it does not end as one, so it is cut off or something else"
    assert message_of(lambda: load_google_simclr(tmp_path / "text")) == INDEX.format(tmp_path / "text", reason)


def test_a_block_outside_of_the_file_is_refused(small):
    path = Path(f"{small}.index")
    footer = (_bundle.varint(0) + _bundle.varint(8) + _bundle.varint(1 << 40) + _bundle.varint(8)).ljust(40, b"\0")
    path.write_bytes(path.read_bytes()[:-48] + footer + struct.pack("<Q", _bundle.MAGIC))
    assert message_of(lambda: read_index(small)) == INDEX.format(small, "a block lies outside of it")


def pairs_of(*pairs: tuple[bytes, bytes]) -> bytes:
    return _bundle.table(dict(pairs), block_size=1000)


def a_block_of_more_restarts_than_bytes() -> bytes:
    content = struct.pack("<I", 9) + b"\0"
    index = _bundle.block([(b"", _bundle.varint(0) + _bundle.varint(4))], interval=1) + b"\0"
    blocks = [part + struct.pack("<I", _bundle.masked(_bundle.crc32c(part))) for part in (content, index)]
    handles = [_bundle.varint(at) + _bundle.varint(size) for at, size in [(0, 4), (len(blocks[0]), len(index) - 1)]]
    return b"".join(blocks) + b"".join(handles).ljust(40, b"\0") + struct.pack("<Q", _bundle.MAGIC)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (a_block_of_more_restarts_than_bytes(), "a part of it ends too early"),
        (struct.pack("<Q", _bundle.MAGIC), "a block lies outside of it"),
        (pairs_of(), "it has no header"),
        (pairs_of((b"name", b"")), "it has no header"),
        (pairs_of((b"", b"\x0f")), "a field of its entries is of the unknown kind 7"),
        (pairs_of((b"", b"\x08")), "a part of it ends too early"),
        (pairs_of((b"", b"\x12\x05ab")), "a part of it ends too early"),
    ],
    ids=["restarts", "magic alone", "empty", "no header", "unknown kind", "number", "bytes"],
)
def test_an_index_that_says_nonsense_is_refused(tmp_path, content, reason):
    (tmp_path / "a.index").write_bytes(content)
    assert message_of(lambda: read_index(tmp_path / "a")) == INDEX.format(tmp_path / "a", reason)


def test_a_big_endian_bundle_is_refused(tmp_path):
    prefix = written(tmp_path, {"a": torch.ones(2)}, endianness=1)
    assert message_of(lambda: load_google_simclr(prefix)) == INDEX.format(prefix, "its tensors are big-endian")


def test_a_compressed_index_is_refused(tmp_path):
    prefix = written(tmp_path, {"a": torch.ones(2)}, compression=1)
    reason = "a block is compressed (type 1; 1 is Snappy)"
    assert message_of(lambda: load_google_simclr(prefix)) == INDEX.format(prefix, reason)


@pytest.mark.parametrize("given", ["model", "model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"])
def test_a_missing_index_is_said_with_what_there_is(tmp_path, given):
    written(tmp_path, {"a": torch.ones(2)})
    write_bundle(tmp_path / "model.ckpt-8", {"a": torch.ones(2)})
    assert message_of(lambda: load_google_simclr(tmp_path / given), FileNotFoundError) == (
        f"`prefix` must be what comes before '.index', there is no {tmp_path / given}.index; prefixes in {tmp_path}: "
        "model.ckpt-7, model.ckpt-8."
    )


def test_a_folder_as_prefix_is_told_what_it_holds(tmp_path):
    written(tmp_path, {"a": torch.ones(2)})
    message = message_of(lambda: load_google_simclr(tmp_path), FileNotFoundError)
    assert message.endswith(f"; prefixes in {tmp_path}: model.ckpt-7.")


@pytest.mark.parametrize("given", ["model", "nowhere/model"])
def test_a_folder_without_checkpoints_is_said_to_have_none(tmp_path, given):
    message = message_of(lambda: load_google_simclr(tmp_path / given), FileNotFoundError)
    assert message.endswith(f"; prefixes in {(tmp_path / given).parent}: none.")


def test_a_missing_data_file_is_said_by_name(small):
    data_file(small, 1, 2).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape("small.data-00001-of-00002")):
        everything(small)


def test_data_that_are_cut_off_anywhere_are_refused(small):
    path, (name, last) = data_file(small, 0, 2), ("scope/layer_4/weights", 4 * 3 * (1 + 3 + 5))
    whole = path.read_bytes()
    assert len(whole) == last
    for length in range(last):
        path.write_bytes(whole[:length])
        message = message_of(lambda: everything(small))
        assert re.fullmatch(rf"{path} must have \d+ bytes for 'scope/layer_\d/weights', it has {length}\.", message)
    assert message == f"{path} must have {last} bytes for {name!r}, it has {last - 1}."


def test_a_turned_bit_in_the_data_is_refused_by_name(small):
    for shard, names in enumerate([(0, 2, 4), (1, 3)]):
        path, at = data_file(small, shard, 2), 0
        whole = path.read_bytes()
        for number in names:
            for bit in range(0, 8 * 4 * 3 * (number + 1), 13):
                content = bytearray(whole)
                content[at + bit // 8] ^= 1 << bit % 8
                path.write_bytes(content)
                expected = f"{path} is damaged: the checksum of 'scope/layer_{number}/weights' is wrong."
                assert message_of(lambda: everything(small)) == expected
            at += 4 * 3 * (number + 1)
        path.write_bytes(whole)


def test_a_network_with_a_turned_bit_is_not_loaded(tmp_path):
    prefix = written(tmp_path, variables(source()))
    path = data_file(prefix, 0, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert re.search(
        r"is damaged: the checksum of 'base_model/[\w/]+' is wrong\.$", message_of(lambda: load_google_simclr(prefix))
    )


NAME = "base_model/batch_normalization/beta"


@pytest.mark.parametrize(("dtype", "number"), [(torch.float16, 19), (torch.float64, 2), (torch.int64, 9)])
def test_a_variable_of_another_type_is_refused_by_name(tmp_path, dtype, number):
    tensors = variables(source())
    prefix = written(tmp_path, tensors | {NAME: tensors[NAME].to(dtype)})
    expected = f"{NAME!r} must be float32 (TensorFlow's type 1), it is of TensorFlow's type {number}."
    assert message_of(lambda: load_google_simclr(prefix)) == expected


def test_a_partitioned_variable_is_refused_by_name(tmp_path):
    prefix = written(tmp_path, variables(source()), partitioned=(NAME,))
    expected = f"{NAME!r} must be one tensor, it is stored in partitions, which are not supported."
    assert message_of(lambda: load_google_simclr(prefix)) == expected


def test_a_size_that_is_not_that_of_the_shape_is_refused_by_name(tmp_path):
    prefix = written(tmp_path, variables(source()) | {NAME: torch.ones(3)}, shapes={NAME: (4,)})
    expected = f"{NAME!r} must take 4 bytes for each of (4,), the index gives it 12."
    assert message_of(lambda: load_google_simclr(prefix)) == expected
