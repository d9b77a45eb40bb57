"""Fine-tuning, against the same steps in a loop; and which labels it sees."""

import copy
import math
import re

import pytest
import torch
from _coloured import TRANSFORMS, Net, Same, coloured
from cl_models import ProjectionHead, resnet18
from cl_train import LARS, ArrayDataset, Classifier, InputError, fine_tune, lars_groups, make_accelerator
from cl_train import _launch as launch
from cl_train._protocol import batch_of
from torch.nn import functional


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr(launch, "_native_precision", lambda: "no")


def tune(network=None, train=None, test=None, **changes):
    settings = {"epochs": 20, "batch_size": 16, "workers": 0, "progress": False} | TRANSFORMS | changes
    network = Classifier(Net(), 3) if network is None else network
    return fine_tune(network, train or coloured(), test or coloured(30, seed=1), **settings)


def sgd(network, batch):
    return torch.optim.SGD(network.parameters(), 0.5, momentum=0.9, nesterov=True)


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}")


def test_a_separable_task_is_solved():
    network = Classifier(Net(), 3)
    found = tune(network, optimizer=sgd)
    assert found.scores.top1 == 1.0
    assert found.network is network
    assert found.run.history[-1]["top1"] > 0.9


def test_all_of_the_network_is_trained():
    network = Classifier(Net(), 3, projector=ProjectionHead(6, 5, 4, layers=3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tune(network, epochs=2)
    assert [name for name, value in network.state_dict().items() if torch.equal(value, before[name])] == []


def test_the_default_is_version_2s_recipe():
    network = Classifier(Net(), 3)
    slow = copy.deepcopy(network).train()
    data, same = coloured(), Same()
    tune(network, epochs=3, batch_size=4096, transform=same)  # cut to all 48: one step an epoch
    optimizer = LARS(lars_groups(slow), 0.005 * math.sqrt(48), momentum=0.9, weight_decay=0.0)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.005 * math.sqrt(48) * 0.5 * (1 + math.cos(math.pi * step / 3))
        optimizer.zero_grad()
        functional.cross_entropy(slow(data.images), data.labels).backward()
        optimizer.step()
    for found, expected in zip(network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("labels", "seen"), [(4, [4, 4, 4]), (0.25, [4, 4, 4]), (None, [16, 16, 16])])
def test_so_many_labels_are_seen(labels, seen):
    shades = []
    data = coloured()

    class Noted(Same):
        def forward(self, images, keys=None):
            shades.append(images.flatten(1).sum(1))
            return images

    tune(labels=labels, epochs=1, transform=Noted(), batch_size=48)
    totals = data.images.flatten(1).sum(1)
    known = {round(float(total), 4): int(label) for total, label in zip(totals, data.labels, strict=True)}
    classes = torch.tensor([known[round(float(total), 4)] for total in torch.cat(shades)])
    assert torch.bincount(classes).tolist() == seen


def test_an_image_listed_by_number_is_seen():
    found = tune(labels=torch.tensor([0, 1, 2, 4]), epochs=1)
    assert found.run.history[-1]["step"] == 1


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    torch.manual_seed(1)
    start = Classifier(resnet18(width=0.0625, stem="cifar"), 3)
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    expected = tune(whole, epochs=2)
    tune(first, epochs=2, max_steps=4, out=tmp_path)
    found = tune(second, epochs=2, out=tmp_path)
    assert found.scores == expected.scores
    for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_other_labels_do_not_go_on(tmp_path):
    first, second = Classifier(Net(), 3), Classifier(Net(), 3)
    tune(first, epochs=1, labels=torch.tensor([0, 1, 2, 3]), out=tmp_path)
    with pytest.raises(InputError, match="is of a run with labelled="):
        tune(second, epochs=1, labels=torch.tensor([4, 5, 6, 7]), out=tmp_path)


@pytest.mark.parametrize(("chunk_size", "most"), [(None, 30), (4, 4)])
def test_test_images_go_through_the_network_in_what_fitted(chunk_size, most):
    network, sizes = Classifier(Net(), 3), []
    network.register_forward_hook(lambda module, inputs, output: sizes.append((module.training, len(output))))
    tune(network, epochs=1, batch_size=48, chunk_size=chunk_size)
    tested = [size for training, size in sizes if not training]
    assert sum(tested) == 30
    assert max(tested) == most


def test_nothing_of_a_run_stays_with_the_accelerator():
    accelerator = make_accelerator("no")
    before = len(accelerator._models), len(accelerator._optimizers)
    tune(epochs=1, accelerator=accelerator)
    assert (len(accelerator._models), len(accelerator._optimizers)) == before


def test_fewer_images_than_processes_are_refused():
    class Three:
        num_processes = 3

    with refused("`batch_size` and the images must be at least as many as the 3 processes, got 8 and 2."):
        batch_of(8, coloured(2), Three())


def test_another_network_does_not_go_on(tmp_path):
    network = Classifier(Net(), 3)
    tune(network, epochs=1, out=tmp_path)
    with pytest.raises(InputError, match="is of a run with network="):
        tune(network, epochs=1, out=tmp_path)  # it is trained already


def test_a_network_of_other_classes_is_refused():
    with refused("`network` must have the 3 classes of the images, it has 4."):
        tune(Classifier(Net(), 4))


def test_the_optimiser_is_told_the_batch_that_is_taken():
    told = []

    def noted(network, batch):
        told.append(batch)
        return sgd(network, batch)

    tune(labels=2, epochs=1, batch_size=4096, optimizer=noted)
    assert told == [6]


def test_labels_of_one_class_only_are_refused():
    with refused("`train` must have images of at least 2 classes, all are of class 0."):
        tune(labels=torch.tensor([0, 3, 6]))


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_without_labels_are_refused(part):
    with refused("`train` and `test` must have labels."):
        tune(**{part: ArrayDataset(coloured().images)})
