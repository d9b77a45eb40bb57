"""Folders and repositories of the Hugging Face Hub: nothing here touches the network."""

import copy
import importlib
import inspect
import io
import json
import pickle
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cl_models
import huggingface_hub
import pytest
import torch
import torchvision
from cl_models import ResNet, load_encoder, resnet18, resnet50
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "config.json", "model.safetensors"]
CONFIGS = [
    {"depth": 18, "width": 0.125},
    {"depth": 34, "width": 0.0625, "stem": "cifar", "in_channels": 1},
    {"depth": 50, "width": 0.125, "variant": "google"},
    {"depth": 50, "width": 0.25, "stem": "cifar", "variant": "google", "selective_kernel": True},
    {"depth": 101, "width": 0.0625, "selective_kernel": True, "in_channels": 4},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny layers wait for their threads longer than they compute, minutes in all where others keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def network(**arguments) -> ResNet:
    torch.manual_seed(0)
    encoder = ResNet(**{"depth": 18, "width": 0.125} | arguments)
    with torch.no_grad():
        encoder(images(encoder))  # moves the running statistics
    return encoder


def images(encoder: ResNet) -> Tensor:
    return torch.rand(4, encoder.config["in_channels"], 32, 32, generator=torch.Generator().manual_seed(0))


def features_of(encoder: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(batch)


def header_of(path: Path) -> dict[str, str]:
    return load_encoder(network(), path)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def snippets_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


@pytest.mark.parametrize("arguments", CONFIGS)
def test_a_folder_gives_the_same_network_and_bit_by_bit_the_same_features(tmp_path, arguments):
    source = network(**arguments)
    source.save_pretrained(tmp_path / "folder")
    found = ResNet.from_pretrained(tmp_path / "folder")
    assert found.config == source.config
    assert_close(features_of(found, images(source)), features_of(source, images(source)), rtol=0, atol=0)


def test_a_network_from_a_folder_is_in_eval_mode(tmp_path):
    network().train().save_pretrained(tmp_path)
    assert not any(module.training for module in ResNet.from_pretrained(tmp_path).modules())


def test_a_folder_holds_card_arguments_and_weights(tmp_path):
    assert network().save_pretrained(tmp_path / "a" / "b") is None
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == FILES


def test_the_arguments_are_all_written_with_the_positional_depth_and_the_defaults(tmp_path):
    ResNet(18, width=0.125).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == ResNet(18, width=0.125).config


def test_the_weights_of_a_folder_are_a_file_of_save_encoder(tmp_path):
    source, target = network(), resnet18(width=0.125)
    source.save_pretrained(tmp_path)
    header = load_encoder(target, tmp_path / "model.safetensors")
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert header.keys() == {"format", "cl_models", "torch", "architecture"}
    assert json.loads(header["architecture"]) == source.config


def test_what_the_card_is_told_stands_in_the_header_too(tmp_path):
    about = {"method": "SimCLR", "data": "CIFAR-10", "epochs": 9, "normalisation": "none", "metadata": {"steps": "7"}}
    network().save_pretrained(tmp_path, model_card_kwargs=about | {"license": "mit", "repo_id": "me/mine"})
    expected = {"method": "SimCLR", "data": "CIFAR-10", "epochs": "9", "normalisation": "none", "steps": "7"}
    header = header_of(tmp_path / "model.safetensors")
    assert {key: header[key] for key in header.keys() - {"format", "cl_models", "torch", "architecture"}} == expected


def test_a_folder_is_read_by_the_mixin_of_hugging_face_as_it_is(tmp_path):
    class Plain(nn.Module, PyTorchModelHubMixin):
        def __init__(self, depth: int, width: float) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, round(64 * width), 7, bias=False)

    source = network()
    source.save_pretrained(tmp_path)
    found = Plain.from_pretrained(tmp_path)
    assert_close(found.conv1.weight, source.conv1.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("key", "given", "row"),
    [
        ("method", "SimCLR", "| method | SimCLR |"),
        ("data", "CIFAR-10", "| data | CIFAR-10 |"),
        ("epochs", 9, "| epochs | 9 |"),
        ("normalisation", "none", "| normalisation | none |"),
        ("normalisation", ([0.5], [0.25]), '| normalisation | {"mean": [0.5], "std": [0.25]} |'),
        ("metadata", {"steps": "7"}, "| steps | 7 |"),
    ],
)
def test_the_card_shows_what_it_is_told_and_only_then(tmp_path, key, given, row):
    network().save_pretrained(tmp_path / "with", model_card_kwargs={key: given})
    network().save_pretrained(tmp_path / "without")
    assert row in card_of(tmp_path / "with").splitlines()
    assert row.split("|")[1] not in card_of(tmp_path / "without")


def test_the_card_has_a_licence_only_if_it_is_told_one(tmp_path):
    network().save_pretrained(tmp_path / "with", model_card_kwargs={"license": "cc-by-4.0"})
    network().save_pretrained(tmp_path / "without")
    assert ModelCard.load(tmp_path / "with" / "README.md").data.license == "cc-by-4.0"
    assert "license" not in card_of(tmp_path / "without")


def test_the_card_has_the_tags_by_which_the_hub_finds_it(tmp_path):
    network().save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "cl-models"
    assert data.pipeline_tag == "image-feature-extraction"
    assert set(data.tags) > {"contrastive-learning", "self-supervised-learning", "resnet"}


def test_the_card_is_laid_out_as_a_table_and_two_snippets(tmp_path):
    ResNet(18).save_pretrained(tmp_path, model_card_kwargs={"method": "SimCLR", "repo_id": "me/mine"})
    body = card_of(tmp_path).split("---\n")[2].replace("---|---|\n", "")
    kinds = ["table" if line.startswith("|") else line for line in body.split("\n") if line]
    assert kinds[0] == "# ResNet-18 encoder, SimCLR"
    assert kinds.count("table") == 6
    assert len(snippets_of(body)) == 2
    assert "\n\n\n" not in body


def test_the_snippets_of_the_card_give_our_features(tmp_path, monkeypatch):
    source = network(width=1)
    source.save_pretrained(tmp_path, model_card_kwargs={"repo_id": str(tmp_path)})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, name: Path(repo_id) / name)
    ours, theirs = snippets_of(card_of(tmp_path))
    names = {"images": images(source)}
    exec(ours, names)
    exec(theirs, names)
    expected = features_of(source, names["images"])
    assert_close(names["features"], expected, rtol=0, atol=0)
    assert_close(features_of(names["network"], names["images"]), expected, rtol=0, atol=1e-6 * expected.abs().max())


@pytest.mark.parametrize("arguments", [*CONFIGS, {"depth": 200}, {"depth": 50, "variant": "google"}])
def test_the_card_speaks_of_torchvision_only_where_its_features_are_ours(arguments):
    with torch.device("meta"):
        assert "torchvision." not in str(ResNet(**arguments).generate_model_card())


def test_the_weights_of_a_folder_load_in_torchvision_but_for_fc(tmp_path):
    with torch.device("meta"):
        theirs = torchvision.models.resnet18()
    network(width=1).save_pretrained(tmp_path)
    result = theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False, assign=True)
    assert result == (["fc.weight", "fc.bias"], [])


def test_saving_again_replaces_weights_and_arguments_but_not_the_card(tmp_path):
    network(width=0.25).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    network().save_pretrained(tmp_path)
    assert ResNet.from_pretrained(tmp_path).config == network().config
    assert card_of(tmp_path) == "mine"


def test_what_the_card_cannot_be_told_is_refused_by_name_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match="'epoch'"):
        network().save_pretrained(tmp_path, model_card_kwargs={"epoch": 100})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def uploads(monkeypatch) -> list[SimpleNamespace]:
    """What was uploaded."""
    found: list[SimpleNamespace] = []

    def create_repo(api, *, repo_id, private, exist_ok):
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}", private=private)

    def upload_folder(api, *, folder_path, **keywords):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        found.append(SimpleNamespace(files=files, keywords=keywords))
        return "url of the commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return found


def test_pushing_uploads_card_arguments_and_weights_in_one_commit(uploads):
    assert network().push_to_hub("me/mine", commit_message="first", branch="dev") == "url of the commit"
    (upload,) = uploads
    assert sorted(upload.files) == FILES
    assert upload.keywords["repo_id"] == "me/mine"
    assert (upload.keywords["commit_message"], upload.keywords["revision"]) == ("first", "dev")


def test_what_is_pushed_gives_the_same_features(uploads, tmp_path):
    source = network()
    source.push_to_hub("me/mine")
    for name, content in uploads[0].files.items():
        (tmp_path / name).write_bytes(content)
    found = ResNet.from_pretrained(tmp_path)
    assert_close(features_of(found, images(source)), features_of(source, images(source)), rtol=0, atol=0)


@pytest.mark.parametrize(("repo_id", "named"), [("me/mine", "me/mine"), ("mine", "OWNER/mine")])
def test_a_pushed_card_names_the_repository_and_what_it_is_told(uploads, repo_id, named):
    network().push_to_hub(repo_id, model_card_kwargs={"data": "CIFAR-10"})
    card = uploads[0].files["README.md"].decode()
    assert f'ResNet.from_pretrained("{named}")' in card
    assert "| data | CIFAR-10 |" in card


def test_pushed_weights_note_what_the_card_is_told(uploads, tmp_path):
    network().push_to_hub("me/mine", model_card_kwargs={"data": "CIFAR-10"})
    (tmp_path / "a").write_bytes(uploads[0].files["model.safetensors"])
    assert header_of(tmp_path / "a")["data"] == "CIFAR-10"


def test_saving_can_push_too(uploads, tmp_path):
    url = network().save_pretrained(
        tmp_path, push_to_hub=True, repo_id="me/mine", model_card_kwargs={"data": "CIFAR-10"}
    )
    assert url == "url of the commit"
    assert sorted(uploads[0].files) == sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert "| data | CIFAR-10 |" in uploads[0].files["README.md"].decode()
    assert header_of(tmp_path / "model.safetensors")["data"] == "CIFAR-10"


def test_a_repository_gives_the_same_features_and_is_asked_for_arguments_and_weights_only(tmp_path, monkeypatch):
    source, asked = network(), []
    source.save_pretrained(tmp_path)

    def download(repo_id, filename, **keywords):
        asked.append((repo_id, filename, keywords["revision"], keywords["token"], keywords["cache_dir"]))
        assert keywords["force_download"]
        assert keywords["local_files_only"]
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr("cl_models._hub.hf_hub_download", download)
    where = {"revision": "v1", "token": "t", "cache_dir": "c", "force_download": True, "local_files_only": True}
    found = ResNet.from_pretrained("me/mine", **where)
    assert asked == [("me/mine", name, "v1", "t", "c") for name in ("config.json", "model.safetensors")]
    assert_close(features_of(found, images(source)), features_of(source, images(source)), rtol=0, atol=0)


def test_a_repository_that_cannot_be_reached_is_an_oserror():
    with pytest.raises(OSError, match="on the Hub"):
        ResNet.from_pretrained("me/mine", cache_dir="nowhere")


def test_a_folder_of_a_truncated_file_is_refused(tmp_path):
    network().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])
    message = f"`path` must be a whole safetensors file, {path} is not: "
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ResNet.from_pretrained(tmp_path)


def test_a_folder_of_other_shapes_is_refused_by_the_name_of_a_tensor(tmp_path):
    network().save_pretrained(tmp_path)
    message = f"`encoder` expects shape (16,) for 'bn1.bias', {tmp_path / 'model.safetensors'} holds shape (8,)."
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        ResNet.from_pretrained(tmp_path, width=0.25)


def test_a_folder_of_fewer_tensors_is_refused_by_the_name_of_the_missing_one(tmp_path):
    network().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["layer4.1.bn2.weight"]
    save_file(state, path)
    message = f"`encoder` expects shape (64,) for 'layer4.1.bn2.weight', {path} holds nothing."
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        ResNet.from_pretrained(tmp_path)


def test_a_folder_whose_arguments_are_not_those_of_its_weights_is_refused(tmp_path):
    resnet50(width=0.125, variant="google").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"depth": 50, "width": 0.125}')
    message = f"`encoder` has variant 'torchvision', {tmp_path / 'model.safetensors'} holds 'google'."
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        ResNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "keywords", "reason"),
    [
        (None, {}, "missing 1 required positional argument: 'depth'"),
        ('{"hidden_sizes": [256, 512]}', {}, "missing 1 required positional argument: 'depth'"),
        ('{"depth": 18}', {"pretrained": True}, "unexpected keyword argument 'pretrained'"),
    ],
)
def test_a_folder_without_our_arguments_is_refused_by_their_names(tmp_path, config, keywords, reason):
    network().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    message = f"{tmp_path}: config.json and keywords do not make a ResNet: "
    with pytest.raises(ValueError, match="^" + re.escape(message) + ".*" + re.escape(reason)):
        ResNet.from_pretrained(tmp_path, **keywords)


def test_a_folder_of_a_pickle_is_a_missing_file(tmp_path):
    source = network()
    source.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "model.safetensors"))):
        ResNet.from_pretrained(tmp_path)


def copied(encoder: ResNet) -> ResNet:
    return copy.deepcopy(encoder)


def pickled(encoder: ResNet) -> ResNet:
    return pickle.loads(pickle.dumps(encoder))


def torch_saved(encoder: ResNet) -> ResNet:
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copying", [copied, pickled, torch_saved])
def test_a_copy_saves_as_the_network_itself_does(tmp_path, copying):
    source = network(in_channels=1)
    copying(source).save_pretrained(tmp_path)
    found = ResNet.from_pretrained(tmp_path)
    assert found.config == source.config
    assert_close(features_of(found, images(source)), features_of(source, images(source)), rtol=0, atol=0)


def test_a_network_compiles_in_one_piece():
    source = network().eval()
    compiled = torch.compile(source, backend="eager", fullgraph=True)
    assert_close(features_of(compiled, images(source)), features_of(source, images(source)), rtol=0, atol=0)


def test_the_signature_of_the_network_is_its_own():
    assert list(inspect.signature(ResNet).parameters) == list(network().config)


@pytest.fixture
def without_hub(monkeypatch) -> ModuleType:
    """The package, read again where huggingface_hub is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "cl_models"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return importlib.import_module("cl_models")


@pytest.mark.parametrize(
    ("name", "arguments"), [("save_pretrained", ["a"]), ("from_pretrained", ["a"]), ("push_to_hub", ["me/mine"])]
)
def test_without_huggingface_hub_its_methods_say_what_to_install(without_hub, name, arguments):
    with pytest.raises(ImportError) as caught:
        getattr(without_hub.ResNet(18, width=0.125), name)(*arguments, revision="main")
    assert str(caught.value).startswith(f"`{name}` needs huggingface_hub: pip install cl-models[hub] (")


def test_the_extra_that_the_message_names_installs_huggingface_hub():
    project = tomllib.loads((ROOT / "packages" / "cl-models" / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["hub"] == ["huggingface-hub>=1"]


def test_without_huggingface_hub_a_network_has_the_same_features_and_files(without_hub, tmp_path):
    assert without_hub.ResNet is not cl_models.ResNet
    source = network()
    cl_models.save_encoder(source, tmp_path / "a.safetensors")
    found = without_hub.ResNet(18, width=0.125)
    assert without_hub.load_encoder(found, tmp_path / "a.safetensors") == header_of(tmp_path / "a.safetensors")
    assert_close(features_of(found, images(source)), features_of(source, images(source)), rtol=0, atol=0)


def test_without_huggingface_hub_a_subclass_may_still_tell_the_mixin(without_hub):
    class Tagged(without_hub.ResNet, library_name="mine", tags=["birds"]):
        pass

    assert Tagged(18, width=0.125).feature_dim == 64
