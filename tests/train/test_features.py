"""Features of a data set: in its order, by the encoder in inference mode, which is left as it was."""

import numpy as np
import pytest
import torch
from cl_augment import EvalTransform
from cl_models import resnet18
from cl_train import ArrayDataset, FolderDataset, extract_features
from PIL import Image
from torch import nn
from torch.testing import assert_close

few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def data(n=10) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ArrayDataset(images, torch.arange(n) % 3)


def net() -> nn.Module:
    """A ResNet whose BatchNorm has statistics that matter."""
    torch.manual_seed(0)
    encoder = resnet18(width=0.0625, stem="cifar")
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return encoder


@pytest.fixture
def folder(tmp_path) -> FolderDataset:
    """Images of unequal sizes."""
    random = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8 + number, 12 - number, 3), dtype=np.uint8)).save(path)
    return FolderDataset(tmp_path)


def directly(encoder: nn.Module, data) -> torch.Tensor:
    """The encoder on one transformed image after the other."""
    encoder.eval()
    with torch.no_grad():
        return torch.cat([encoder(EvalTransform(8)(data.read(i)[None])) for i in range(len(data))])


@pytest.mark.parametrize("batch_size", [1, 3, 10, 256])
def test_features_are_those_of_the_encoder_in_order_whatever_the_batch(batch_size):
    features, _ = extract_features(net(), data(), transform=EvalTransform(8), batch_size=batch_size)
    assert_close(features, directly(net(), data()), rtol=1e-4, atol=1e-5)


@few_cores
@forking
@pytest.mark.parametrize("workers", [0, 2])
def test_features_of_files_are_those_of_the_encoder_in_order(folder, workers):
    features, labels = extract_features(net(), folder, transform=EvalTransform(8), batch_size=4, workers=workers)
    assert_close(features, directly(net(), folder), rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_features_of_different_images_differ():
    features, _ = extract_features(net(), data(), transform=EvalTransform(8))
    assert len(features.unique(dim=0)) == 10


def test_labels_are_those_of_the_data_set():
    assert extract_features(net(), data(), transform=EvalTransform(8))[1].tolist() == data().labels.tolist()


def test_without_labels_there_are_none():
    unlabelled = ArrayDataset(data().images)
    assert extract_features(net(), unlabelled, transform=EvalTransform(8))[1] is None


def test_the_transform_gets_the_numbers_of_the_images_as_keys():
    seen = []

    def transform(images, keys):
        seen.extend(keys.tolist())
        return EvalTransform(8)(images)

    extract_features(net(), data(), transform=transform, batch_size=4)
    assert seen == list(range(10))


def test_features_are_float32_without_gradient():
    encoder = net().double()
    images = ArrayDataset(torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    features, _ = extract_features(encoder, images, transform=EvalTransform(8))
    assert features.dtype == torch.float32
    assert not features.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_runs_in_inference_mode_and_gets_its_own_back(training):
    encoder, modes = net().train(training), []
    encoder.register_forward_hook(lambda module, inputs, output: modes.append(module.bn1.training))
    extract_features(encoder, data(), transform=EvalTransform(8))
    assert modes == [False]
    assert {module.training for module in encoder.modules()} == {training}


def test_parts_that_were_in_inference_mode_stay_so():
    encoder = net().train()
    encoder.bn1.eval()  # a frozen BatchNorm in a network that trains
    extract_features(encoder, data(), transform=EvalTransform(8))
    assert encoder.training
    assert not encoder.bn1.training


def test_weights_and_statistics_are_not_changed():
    encoder = net().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    extract_features(encoder, data(), transform=EvalTransform(8))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_raw_pixels_are_the_features_of_a_network_without_parameters():
    images = data()
    features, labels = extract_features(nn.Flatten(), images, transform=EvalTransform(8))
    assert_close(features, images.images.flatten(1) / 255)
    assert torch.equal(labels, images.labels)
