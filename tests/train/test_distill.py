"""Distillation, against the same steps in a loop."""

import copy
import math
import re

import pytest
import torch
from _coloured import TRANSFORMS, Net, Same, coloured
from cl_train import ArrayDataset, Classifier, InputError, distill
from cl_train import _launch as launch
from torch import nn
from torch.nn import functional


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr(launch, "_native_precision", lambda: "no")


class Teacher(nn.Module):
    """Knows the task: the brightest channel; and has statistics that could be spoilt."""

    def __init__(self, sharp=20.0):
        super().__init__()
        self.bn, self.sharp = nn.BatchNorm1d(3), nn.Parameter(torch.tensor(sharp))

    def forward(self, images):
        return self.bn(self.sharp * images.mean((2, 3)))


def teach(student=None, train=None, test=None, *, teacher=None, **changes):
    student = Classifier(Net(), 3) if student is None else student
    settings = {"epochs": 20, "batch_size": 16, "workers": 0, "progress": False} | TRANSFORMS | changes
    settings.setdefault("optimizer", lambda network, batch: torch.optim.SGD(network.parameters(), 0.5, momentum=0.9))
    test = test or coloured(30, seed=1)
    return distill(student, train or coloured(), test, teacher=teacher or Teacher(), **settings)


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}")


def test_a_student_learns_from_images_without_labels():
    found = teach(train=ArrayDataset(coloured().images))
    assert found.scores.top1 == 1.0
    assert found.run.history[-1]["agreement"] > 0.9


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.0), (0.5, 0.3)])
def test_the_student_is_trained_by_the_papers_loss(temperature, weight):
    student, teacher, data = Classifier(Net(), 3), Teacher(), coloured()
    slow = copy.deepcopy(student).train()
    few = torch.tensor([0, 4, 7, 20])
    settings = {"temperature": temperature, "label_weight": weight, "labels": few, "transform": Same()}
    teach(student, teacher=teacher, epochs=3, batch_size=48, warmup_epochs=0.0, **settings)
    optimizer = torch.optim.SGD(slow.parameters(), 0.5, momentum=0.9)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.5 * 0.5 * (1 + math.cos(math.pi * step / 3))
        optimizer.zero_grad()
        logits = slow(data.images)
        soft = (teacher.eval()(data.images).detach() / temperature).softmax(1)
        told = temperature**2 * -(soft * (logits / temperature).log_softmax(1)).sum(1).mean()
        (((1 - weight) * told) + weight * functional.cross_entropy(logits[few], data.labels[few])).backward()
        optimizer.step()
    for found, expected in zip(student.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_default_is_the_papers_optimiser_and_warm_up(tmp_path):
    found = teach(epochs=20, optimizer=None, batch_size=48, out=tmp_path, log_every=1)
    rates = [entry["lr"] for entry in found.run.history]
    assert rates[0] == 0  # of a warm-up of one epoch, which is one step here
    assert rates[1] == pytest.approx(0.1 * math.sqrt(48))
    config = (tmp_path / "config.json").read_text()
    assert '"LARS"' in config
    assert "0.0001" in config


def test_the_teacher_stays_as_it_was_and_gets_no_gradient():
    teacher = Teacher().train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teach(teacher=teacher, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training


def test_the_teacher_is_not_in_the_checkpoints(tmp_path):
    found = teach(epochs=1, out=tmp_path)
    state = (found.run.checkpoint / "method.safetensors").read_bytes()
    assert b"sharp" not in state


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    settings = {"epochs": 2, "label_weight": 0.5, "labels": 2}
    expected = teach(**settings)
    teach(**settings, max_steps=4, out=tmp_path)
    found = teach(**settings, out=tmp_path)
    for a, b in zip(expected.network.state_dict().values(), found.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_chunks_teach_what_the_whole_batch_does():
    class Plain(nn.Module):
        feature_dim = 12

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(12, 12)

        def forward(self, images):
            return self.layer(functional.adaptive_avg_pool2d(images, 2).flatten(1)).tanh()

    found = [
        teach(Classifier(Plain(), 3), epochs=1, label_weight=0.5, labels=4, **chunks).network.state_dict()
        for chunks in ({}, {"chunk_size": 4})
    ]
    for whole, parts in zip(*(each.values() for each in found), strict=True):
        torch.testing.assert_close(parts, whole)


def test_a_chunk_that_fits_is_found_with_a_teacher():
    assert teach(epochs=1, chunk_size="auto").scores.images == 30


def test_a_class_of_another_name_is_refused_where_labels_count():
    train = ArrayDataset(coloured().images, coloured().labels, classes=["b", "a", "c"])
    test = ArrayDataset(coloured(30, seed=1).images, coloured(30, seed=1).labels, classes=["a", "b", "c"])
    assert teach(train=train, test=test, epochs=1).scores.images == 30
    with refused("`train` and `test` must have the same classes, got ['b', 'a', 'c'] and ['a', 'b', 'c']."):
        teach(train=train, test=test, label_weight=0.5)


def test_a_teacher_that_is_the_student_is_refused():
    student = Classifier(Net(), 3)
    with refused("`teacher` must share no parameter with `student`: it would learn with it."):
        teach(student, teacher=student)


def test_a_teacher_that_still_trains_is_refused():
    class Training(Teacher):
        def forward(self, images):
            self.sharp.data += 0.1
            return super().forward(images)

    with refused("`teacher` must stay as it is in inference mode, sharp has changed: it still trains."):
        teach(teacher=Training(), epochs=1)


def test_with_other_labels_it_does_not_go_on(tmp_path):
    teach(epochs=1, label_weight=0.5, labels=torch.tensor([0, 1, 2]), out=tmp_path)
    with pytest.raises(InputError, match="is of a run with labelled="):
        teach(epochs=1, label_weight=0.5, labels=torch.tensor([3, 4, 5]), out=tmp_path)


def test_with_another_teacher_it_does_not_go_on(tmp_path):
    teach(epochs=1, out=tmp_path)
    with pytest.raises(InputError, match="is of a run with teacher="):
        teach(epochs=1, out=tmp_path, teacher=Teacher(3.0))


def test_a_teacher_of_other_classes_is_refused():
    class Four(Teacher):
        def forward(self, images):
            return images.mean((2, 3)).repeat(1, 2)[:, :4]

    with refused("`teacher` must return logits of shape (n, 3) like `student`, got (1, 4) for one image."):
        teach(teacher=Four())


def test_a_student_of_other_classes_is_refused():
    with refused("`student` must have the 3 classes of the images, it has 4."):
        teach(Classifier(Net(), 4))


def test_labels_that_are_not_there_are_missed():
    with refused("`train` and `test` must have labels."):
        teach(train=ArrayDataset(coloured().images), label_weight=0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_a_weight_out_of_range_is_refused(weight):
    with refused(f"`label_weight` must be in [0, 1), got {weight}."):
        teach(label_weight=weight)


@pytest.mark.parametrize("temperature", [0.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with refused(f"`temperature` must be positive, got {temperature}."):
        teach(temperature=temperature)
