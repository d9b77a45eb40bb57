"""Weights in files: what goes in comes out, and what does not fit is refused by name."""

import re

import pytest
import torch
import torchvision
from cl_models import load_encoder, resnet18, resnet50, save_encoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close


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


def test_saved_weights_load_in_torchvision_but_for_fc(tmp_path):
    torch.manual_seed(0)
    source = resnet18()
    save_encoder(source, tmp_path / "a.safetensors")
    with torch.device("meta"):
        theirs = torchvision.models.resnet18()
    result = theirs.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=False, assign=True)
    assert (result.missing_keys, result.unexpected_keys) == (["fc.weight", "fc.bias"], [])


def test_metadata_comes_back(tmp_path):
    metadata = {"method": "SimCLR", "epochs": "100", "note": "Grüße ✓"}
    save_encoder(network(seed=0), tmp_path / "a.safetensors", metadata=metadata)
    assert load_encoder(network(seed=1), tmp_path / "a.safetensors") == metadata


def test_no_metadata_comes_back_as_none_at_all(tmp_path):
    save_encoder(network(seed=0), tmp_path / "a.safetensors")
    assert load_encoder(network(seed=1), tmp_path / "a.safetensors") == {}


def test_saving_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    save_encoder(network(seed=0), path)
    load_encoder(network(seed=1), path)
    assert list(tmp_path.iterdir()) == [path]


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


@pytest.mark.parametrize("damage", ["truncated", "too few", "shape"])
def test_an_encoder_is_unchanged_when_loading_fails(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    save_encoder(network(seed=0), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        state = load_file(path)
        last = sorted(state)[-1]  # all that comes before it fits
        save_file(
            {k: v for k, v in state.items() if k != last} if damage == "too few" else state | {last: torch.ones(3)},
            path,
        )
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
