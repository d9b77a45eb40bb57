"""The paper's linear evaluation: the encoder is judged and not touched."""

import math
import re
import tempfile

import numpy as np
import pytest
import torch
from _coloured import TRANSFORMS, Same, coloured
from cl_augment import LinearEvalAugment
from cl_models import resnet18
from cl_train import ArrayDataset, FolderDataset, InputError, linear_eval, make_accelerator
from cl_train import _launch as launch
from PIL import Image
from torch import nn
from torch.nn import functional

few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr(launch, "_native_precision", lambda: "no")


class MeanColour(nn.Module):
    """Features that solve `coloured`, with a BatchNorm whose statistics could be spoilt."""

    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.bn, self.scale = nn.BatchNorm2d(3), nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.scale * self.bn(images).mean((2, 3))


def judge(encoder=None, train=None, test=None, **changes):
    arguments = {"epochs": 20, "batch_size": 16, "base_lr": 2.0, "workers": 0, "progress": False} | TRANSFORMS | changes
    return linear_eval(encoder or MeanColour(), train or coloured(), test or coloured(30, seed=1), **arguments)


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


# The result


def test_a_separable_task_is_solved():
    found = judge()
    assert (found.top1, found.top5) == (1.0, 1.0)


def test_an_encoder_that_sees_nothing_is_at_chance():
    class Blind(MeanColour):
        def forward(self, images):
            return torch.ones(len(images), 3)

    assert judge(Blind()).top1 == pytest.approx(1 / 3)


def test_all_test_images_count_also_those_that_fill_no_batch():
    test = coloured(11, seed=1)
    wrong = test.labels.clone()
    wrong[[0, 10]] = (wrong[[0, 10]] + 1) % 3
    assert judge(test=ArrayDataset(test.images, wrong)).top1 == pytest.approx(9 / 11)


def test_the_result_is_a_function_of_the_seed_alone():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(judge(epochs=1, base_lr=0.01, seed=3))
    assert results[0] == results[1]


def test_without_training_steps_taken_max_steps_ends_the_training():
    calls, encoder = [], MeanColour()
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    judge(encoder, max_steps=4, epochs=20)
    assert calls == [16] * 4 + [16, 14]  # four steps of training, then the test


def test_training_takes_whole_batches_for_all_epochs():
    calls, encoder = [], MeanColour()
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    judge(encoder, train=coloured(37), epochs=2, batch_size=16)
    assert calls == [16] * 4 + [16, 14]


def test_a_batch_of_more_than_all_images_is_all_images():
    calls, encoder = [], MeanColour()
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    judge(encoder, epochs=1, batch_size=4096)
    assert calls == [48, 30]


def test_every_epoch_has_other_views():
    seen = []

    def transform(images, keys):
        seen.append(keys)
        return LinearEvalAugment(8)(images, keys)

    judge(transform=transform, epochs=2, batch_size=48)
    assert set(seen[0].tolist()).isdisjoint(seen[1].tolist())


def test_test_images_go_through_the_transform_of_the_test():
    def dark(images, keys):
        return torch.zeros(len(images), 3, 8, 8)

    assert judge(test_transform=dark).top1 == pytest.approx(1 / 3)


def test_the_layer_is_trained_as_the_paper_says():
    class Pixels(nn.Module):
        feature_dim = 12

        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return images.flatten(1)

    generator = torch.Generator().manual_seed(0)
    train = ArrayDataset(torch.rand(40, 3, 2, 2, generator=generator), torch.arange(40) % 4)
    test = ArrayDataset(torch.rand(200, 3, 2, 2, generator=generator), torch.arange(200) % 4)

    same = Same()
    found = judge(Pixels(), train, test, transform=same, test_transform=same, epochs=3, batch_size=40, base_lr=3.0)
    rows, w, b = train.images.flatten(1).double(), torch.zeros(4, 12).double(), torch.zeros(4).double()
    v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(3):  # one step an epoch: the order of the images does not matter
        lr = 3.0 * 40 / 256 * 0.5 * (1 + math.cos(math.pi * step / 3))
        rest = ((rows @ w.T + b).softmax(1) - functional.one_hot(train.labels, 4)) / 40
        g_w, g_b = rest.T @ rows, rest.sum(0)
        v_w, v_b = 0.9 * v_w + g_w, 0.9 * v_b + g_b
        w, b = w - lr * (g_w + 0.9 * v_w), b - lr * (g_b + 0.9 * v_b)  # Nesterov
    logits = test.images.flatten(1).double() @ w.T + b
    assert found.top1 == pytest.approx((logits.argmax(1) == test.labels).double().mean().item(), abs=1e-9)


@few_cores
@forking
@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_the_result_of_images_in_memory(tmp_path, workers):
    random = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / f"class {number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    folder = FolderDataset(tmp_path)
    memory = ArrayDataset(torch.stack([folder.read(i) for i in range(24)]), folder.labels, classes=folder.classes)
    settings = {"epochs": 2, "batch_size": 8}
    from_memory = judge(train=memory, test=memory, **settings)
    assert judge(train=folder, test=folder, workers=workers, **settings) == from_memory
    assert 0 < from_memory.top1 < 1


# The encoder


def test_weights_and_statistics_of_the_encoder_are_not_changed():
    torch.manual_seed(0)
    encoder = resnet18(width=0.0625, stem="cifar").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    judge(encoder, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_encoder_gets_no_gradient():
    encoder = MeanColour()
    judge(encoder, epochs=2)
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_runs_in_inference_mode_and_gets_its_own_back(training):
    encoder, modes = MeanColour().train(training), []
    encoder.register_forward_hook(lambda module, inputs, output: modes.append(module.bn.training))
    judge(encoder, epochs=1)
    assert set(modes) == {False}
    assert {module.training for module in encoder.modules()} == {training}


def test_parts_that_were_in_inference_mode_stay_so():
    encoder = MeanColour().train()
    encoder.bn.eval()
    judge(encoder, epochs=1)
    assert encoder.training
    assert not encoder.bn.training


# Refused


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_without_labels_are_refused(part):
    with refused("`train` and `test` must have labels."):
        judge(**{part: ArrayDataset(coloured().images)})


def test_other_classes_are_refused():
    with refused("`train` and `test` must have the same classes, got ['0', '1', '2'] and ['0', '1']."):
        judge(test=coloured(classes=2))


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", -2), ("base_lr", 0.0), ("base_lr", -1.0)]
)
def test_an_argument_that_is_not_positive_is_refused(name, value):
    with refused(f"`{name}` must be positive, got {value}."):
        judge(**{name: value})


@pytest.mark.parametrize("name", ["max_steps", "epochs"])
def test_what_pretrain_refuses_is_refused(name):
    with refused(f"`{name}` must be at least 1, got 0."):
        judge(**{name: 0})


def test_one_class_is_refused():
    with refused("`train` must have images of at least 2 classes, all are of class 0."):
        judge(train=ArrayDataset(coloured().images, [0] * 48, classes=["0", "1", "2"]))


def test_an_encoder_that_still_trains_is_refused():
    class Training(MeanColour):
        def forward(self, images):
            self.bn.train()
            return super().forward(images)

    message = "`encoder` must stay as it is in inference mode, bn.running_mean has changed: it still trains."
    with refused(message):
        judge(Training())


def test_features_of_another_width_than_announced_are_refused():
    class Wide(MeanColour):
        feature_dim = 4

    message = "`encoder` must return features of shape (n, 4), as its feature_dim says, got (16, 3)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        judge(Wide())


# In a folder


def test_an_evaluation_goes_on_where_it_was_interrupted(tmp_path):
    whole = judge(epochs=3, base_lr=0.01)
    judge(epochs=3, base_lr=0.01, max_steps=5, out=tmp_path)
    calls, encoder = [], MeanColour()
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    assert judge(encoder, epochs=3, base_lr=0.01, out=tmp_path) == whole
    assert calls == [16] * 4 + [16, 14]


def test_an_evaluation_of_another_encoder_does_not_go_on(tmp_path):
    judge(epochs=1, out=tmp_path)
    other = MeanColour()
    other.scale.data.fill_(3.0)
    with pytest.raises(InputError, match="is of a run with encoder="):
        judge(other, epochs=1, out=tmp_path)


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    judge(epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_evaluation_leaves_the_mode_alone():
    encoder = MeanColour().train()
    with pytest.raises(InputError):
        judge(encoder, epochs=0)
    assert encoder.training


def test_the_accelerator_may_be_given():
    assert judge(accelerator=make_accelerator("bf16")).top1 == 1


# What a person sees


def test_without_progress_nothing_is_printed(capsys):
    judge()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("broken", ["train", "test"])
def test_unreadable_images_are_left_out_where_they_are_allowed_and_end_it_otherwise(tmp_path, broken):
    sets = {}
    for name, data in (("train", coloured()), ("test", coloured(30, seed=1))):
        for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            path = tmp_path / name / f"{label}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(path)
        sets[name] = FolderDataset(tmp_path / name)
    bad = tmp_path / broken / "1" / "07.png"
    bad.write_bytes(bad.read_bytes()[:100])
    said = r"07\.png cannot be decoded" if broken == "train" else r"1 of 30 test images could not be read, .*07\.png"
    with pytest.raises(InputError, match=said):
        judge(**sets)
    found = judge(**sets, max_bad_images=0.1)
    assert found.top1 == 1.0  # of 29, if it is one of the test's
    (tmp_path / broken / "0" / "00.png").write_bytes(b"")
    counted = (
        "2 of 48 could not be read; they are in"
        if broken == "train"
        else "2 of 30 test images could not be read, such as"
    )
    with pytest.raises(InputError, match=f"^`max_bad_images` is 0.01 of all, {counted}"):
        judge(**sets, max_bad_images=0.01)
