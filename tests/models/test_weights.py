"""Weights in files: what goes in comes out, and what does not fit is refused by name."""

import json
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cl_models
import pytest
import timm
import torch
import torchvision
from cl_models import ResNet, load_encoder, resnet18, resnet50, save_encoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

LIBRARIES = {"torchvision": lambda name: getattr(torchvision.models, name)(), "timm": timm.create_model}
NOTED_ALWAYS = {"format", "cl_models", "torch", "architecture"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny layers wait for their threads longer than they compute, minutes in all where others keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(*, seed: int, width: float = 0.125, stem: str = "imagenet") -> nn.Module:
    torch.manual_seed(seed)
    encoder = resnet18(width=width, stem=stem)
    encoder(torch.rand(4, 3, 32, 32))  # moves the running statistics
    return encoder


def copied(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def message_of(encoder: nn.Module, path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers read the message
        load_encoder(encoder, path)
    return str(caught.value)


def test_saved_weights_come_back_bit_by_bit(tmp_path):
    source, target = network(seed=0), network(seed=1)
    save_encoder(source, tmp_path / "a.safetensors")
    load_encoder(target, tmp_path / "a.safetensors")
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_a_path_may_be_text(tmp_path):
    source, target = network(seed=0), network(seed=1)
    save_encoder(source, str(tmp_path / "a.safetensors"))
    load_encoder(target, str(tmp_path / "a.safetensors"))
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def empty(make, *arguments) -> nn.Module:
    """Without the time that drawing weights takes: whatever lay in memory stands in them."""
    with torch.device("meta"):
        return make(*arguments).to_empty(device="cpu")


def features_of(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def assert_same_features(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@dataclass
class Saved:
    """A network of ours and the file of its weights."""

    network: ResNet
    path: Path


@pytest.fixture(scope="module", params=[18, 34, 50, 101, 152])
def saved(request, tmp_path_factory) -> Iterator[Saved]:
    """At width 1, with running statistics, scales and shifts as after training."""
    torch.manual_seed(0)
    network = ResNet(request.param)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.bias.data, part.running_mean, part.running_var):
                tensor.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    save_encoder(network, path)
    yield Saved(network, path)
    path.unlink()  # pytest keeps folders for three runs; these would be gigabytes


@dataclass
class Theirs:
    """The same network of another library, what it said when it read our file, and its classifier taken off."""

    network: nn.Module
    missing: list[str]
    left_over: list[str]


@pytest.fixture(scope="module", params=list(LIBRARIES))
def theirs(request, saved) -> Theirs:
    network = empty(LIBRARIES[request.param], f"resnet{saved.network.config['depth']}")
    missing, left_over = network.load_state_dict(load_file(saved.path), strict=False)
    network.fc = nn.Identity()
    return Theirs(network, missing, left_over)


def test_torchvision_and_timm_miss_only_fc_in_our_file(theirs):
    assert (theirs.missing, theirs.left_over) == (["fc.weight", "fc.bias"], [])


def test_our_file_gives_our_features_in_torchvision_and_timm(saved, theirs):
    assert_same_features(features_of(theirs.network), features_of(saved.network))


def test_a_file_of_torchvision_and_timm_gives_their_features_in_ours(saved, theirs, tmp_path):
    save_encoder(theirs.network, tmp_path / "theirs.safetensors")
    ours = empty(ResNet, saved.network.config["depth"])
    load_encoder(ours, tmp_path / "theirs.safetensors")
    (tmp_path / "theirs.safetensors").unlink()
    assert_same_features(features_of(ours), features_of(theirs.network))


def test_loading_into_a_network_with_a_classifier_is_refused_by_its_name(tmp_path):
    path = tmp_path / "a.safetensors"
    save_encoder(empty(resnet18), path)
    theirs = empty(torchvision.models.resnet18)
    assert message_of(theirs, path) == f"`encoder` expects shape (1000,) for 'fc.bias', {path} holds nothing."


def test_the_header_notes_format_versions_and_our_arguments_and_nothing_that_was_not_given(tmp_path):
    source = network(seed=0)
    save_encoder(source, tmp_path / "a.safetensors")
    header = load_encoder(network(seed=1), tmp_path / "a.safetensors")
    assert json.loads(header.pop("architecture")) == source.config
    assert header == {"format": "pt", "cl_models": cl_models.__version__, "torch": torch.__version__}


def test_the_arguments_in_the_header_build_a_network_that_the_file_fits(tmp_path):
    source = ResNet(50, width=0.125, stem="cifar", variant="google", selective_kernel=True, in_channels=1)
    save_encoder(source, tmp_path / "a.safetensors")
    header = load_encoder(source, tmp_path / "a.safetensors")
    load_encoder(ResNet(**json.loads(header["architecture"])), tmp_path / "a.safetensors")


def test_the_header_notes_the_class_of_another_module(tmp_path):
    save_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors")
    header = load_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors")
    assert header["architecture"] == "torch.nn.modules.linear.Linear"


def test_what_is_given_stands_in_the_header(tmp_path):
    given = {"method": "SimCLR", "data": "CIFAR-10"}
    save_encoder(network(seed=0), tmp_path / "a.safetensors", **given, epochs=100, metadata={"note": "Grüße ✓"})
    header = load_encoder(network(seed=1), tmp_path / "a.safetensors")
    assert header.keys() - NOTED_ALWAYS == {"method", "data", "epochs", "note"}
    assert header.items() >= (given | {"epochs": "100", "note": "Grüße ✓"}).items()


def test_method_and_data_may_stand_in_metadata(tmp_path):
    metadata = {"method": "SimCLR", "data": "digits", "steps": "100"}
    save_encoder(network(seed=0), tmp_path / "a.safetensors", metadata=metadata)
    assert load_encoder(network(seed=1), tmp_path / "a.safetensors").items() >= metadata.items()


def test_a_normalisation_of_none_is_noted_as_such(tmp_path):
    save_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors", normalisation="none")
    assert load_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors")["normalisation"] == "none"


@pytest.mark.parametrize("kind", [tuple, list, torch.tensor])
def test_a_normalisation_is_noted_as_json(tmp_path, kind):
    mean, std = [0.5, 0.25, 0.75], [0.125, 1, 2]
    save_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors", normalisation=(kind(mean), kind(std)))
    noted = load_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors")["normalisation"]
    assert json.loads(noted) == {"mean": mean, "std": std}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": -1}, "`epochs` must be at least 0, got -1."),
        (
            {"normalisation": "no"},
            "`normalisation` must be 'none' or a mean and a standard deviation, got 'no'.",
        ),
        (
            {"normalisation": ([0.5],)},
            "`normalisation` must be 'none' or a mean and a standard deviation, got ([0.5],).",
        ),
        (
            {"normalisation": ([0.5, 0.5, 0.5], [0.2])},
            "`normalisation` must have a mean and a standard deviation per channel, got 3 and 1.",
        ),
        (
            {"normalisation": ([], [])},
            "`normalisation` must have a mean and a standard deviation per channel, got 0 and 0.",
        ),
        (
            {"normalisation": ([0.5, 0.5], [0.2, 0])},
            "`normalisation` must be finite, deviations positive, got mean [0.5, 0.5] and deviation [0.2, 0.0].",
        ),
        (
            {"normalisation": ([float("nan")], [1])},
            "`normalisation` must be finite, deviations positive, got mean [nan] and deviation [1.0].",
        ),
        (
            {"normalisation": ([0], [float("inf")])},
            "`normalisation` must be finite, deviations positive, got mean [0.0] and deviation [inf].",
        ),
        (
            {"method": "SimCLR", "data": "digits", "metadata": {"method": "BYOL", "data": "x"}},
            "`metadata` must not repeat what the header has already, got data, method.",
        ),
        (
            {"metadata": {"architecture": "mine"}},
            "`metadata` must not repeat what the header has already, got architecture.",
        ),
        ({"metadata": {"a": "text", "steps": 100}}, "The header must hold text, got 100 for 'steps'."),
        ({"metadata": {1: "text"}}, "The header must hold text, got 'text' for 1."),
        ({"data": Path("digits")}, f"The header must hold text, got {Path('digits')!r} for 'data'."),
    ],
)
def test_what_no_header_can_hold_is_refused_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        save_encoder(nn.Linear(2, 2), tmp_path / "a.safetensors", **given)
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    save_encoder(network(seed=0), path)
    load_encoder(network(seed=1), path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_the_disk_has_the_new_one(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    path = tmp_path / "a.safetensors"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_encoder(network(seed=0), path)
    assert [(file, file.read_text()) for file in tmp_path.iterdir()] == [(path, "old")]


def test_saving_takes_tensors_that_are_not_contiguous(tmp_path):
    source = network(seed=0).to(memory_format=torch.channels_last)
    target = network(seed=1)
    save_encoder(source, tmp_path / "a.safetensors")
    load_encoder(target, tmp_path / "a.safetensors")
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0, check_stride=False)


def test_saving_leaves_the_encoder_alone(tmp_path):
    source = network(seed=0)
    before = copied(source)
    save_encoder(source, tmp_path / "a.safetensors")
    assert_close(source.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in source.parameters())


def test_a_missing_folder_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        save_encoder(network(seed=0), tmp_path / "nowhere" / "a.safetensors")


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_encoder(network(seed=0), tmp_path / "a.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0), path)
    path.write_bytes(path.read_bytes()[:kept])
    message = message_of(network(seed=1), path)
    assert message.startswith(f"`path` must be a whole safetensors file, {path} is not: ")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(network(seed=0).state_dict(), path)
    assert message_of(network(seed=1), path).startswith(f"`path` must be a whole safetensors file, {path} is not: ")


class TouchesAFile:
    """Its pickle is a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_not_run(tmp_path, dump):
    path, marker = tmp_path / "a.pt", tmp_path / "marker"
    dump({"conv1.weight": TouchesAFile(marker)}, path)
    assert message_of(network(seed=1), path).startswith(f"`path` must be a whole safetensors file, {path} is not: ")
    assert not marker.exists()
    torch.load(path, weights_only=False) if dump is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists()  # it would have


def test_another_width_is_refused_by_the_name_of_a_tensor(tmp_path):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0, width=0.25), path)
    assert (
        message_of(network(seed=1), path) == f"`encoder` expects shape (8,) for 'bn1.bias', {path} holds shape (16,)."
    )


def test_another_stem_is_refused_by_the_name_of_its_convolution(tmp_path):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0, stem="cifar"), path)
    expected = f"`encoder` expects shape (8, 3, 7, 7) for 'conv1.weight', {path} holds shape (8, 3, 3, 3)."
    assert message_of(network(seed=1), path) == expected


def test_a_tensor_too_few_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0), path)
    state = load_file(path)
    del state["layer2.0.bn1.running_var"]
    save_file(state, path)
    expected = f"`encoder` expects shape (16,) for 'layer2.0.bn1.running_var', {path} holds nothing."
    assert message_of(network(seed=1), path) == expected


def test_a_tensor_too_many_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0), path)
    save_file(load_file(path) | {"fc.bias": torch.zeros(10)}, path)
    assert message_of(network(seed=1), path) == f"`encoder` expects nothing for 'fc.bias', {path} holds shape (10,)."


def test_another_architecture_is_refused_by_the_name_of_a_tensor(tmp_path):
    path = tmp_path / "a.safetensors"
    save_encoder(resnet50(width=0.125), path)
    message = message_of(network(seed=0), path)
    assert re.search(r"for '(layer\d\.\d\.[\w.]+)'", message)


@pytest.mark.parametrize(("ours", "file"), [("torchvision", "google"), ("google", "torchvision")])
def test_the_other_variant_is_refused_though_names_and_shapes_are_the_same(tmp_path, ours, file):
    path = tmp_path / "a.safetensors"
    save_encoder(resnet50(width=0.125, variant=file), path)
    message = message_of(resnet50(width=0.125, variant=ours), path)
    assert message == f"`encoder` has variant '{ours}', {path} holds '{file}'."


def test_a_width_that_rounds_to_the_same_channels_fits(tmp_path):
    source, target = network(seed=0, width=0.125), network(seed=1, width=0.1251)
    save_encoder(source, tmp_path / "a.safetensors")
    load_encoder(target, tmp_path / "a.safetensors")
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", [None, "resnet18", "{", "[50]", "18", '{"depth": 18}'])
def test_headers_of_other_tools_and_versions_do_not_hinder(tmp_path, architecture):
    source, target = network(seed=0), network(seed=1)
    metadata = None if architecture is None else {"architecture": architecture}
    save_file(source.state_dict(), tmp_path / "a.safetensors", metadata=metadata)
    assert load_encoder(target, tmp_path / "a.safetensors") == (metadata or {})
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["truncated", "too few", "shape", "variant"])
def test_an_encoder_is_unchanged_when_loading_fails(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0), path)
    state = load_file(path)
    last = sorted(state)[-1]  # all that comes before it fits
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "too few":
        save_file({k: v for k, v in state.items() if k != last}, path)
    elif damage == "shape":
        save_file(state | {last: torch.ones(3)}, path)
    else:
        save_file(state, path, metadata={"architecture": '{"variant": "google"}'})
    target = network(seed=1)
    before = copied(target)
    message_of(target, path)
    assert_close(target.state_dict(), before, rtol=0, atol=0)


def test_weights_that_are_used_twice_are_saved(tmp_path):
    twice = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    twice[1].weight = twice[0].weight
    save_encoder(twice, tmp_path / "twice.safetensors")
    load_encoder(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path / "twice.safetensors")


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        save_encoder(nn.Linear(2, 2), tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
