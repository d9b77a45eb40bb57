"""Images without label, -1, and domains, where labels are asked for: left out, or refused by name."""

import re

import pytest
import torch
from cl_augment import EvalTransform, LinearEvalAugment, SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import (
    BYOL,
    ArrayDataset,
    DomainDataset,
    InputError,
    Relabelled,
    SimCLR,
    fine_tune,
    in_memory,
    keep_labels,
    linear_eval,
    plot_neighbours,
)
from cl_train import Classifier as Network
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

IMAGES = ArrayDataset(torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)
FEW = keep_labels(IMAGES, 1)
NINE = "must have a label for each image, 9 of 12 have none: take a Subset."


class Net(nn.Module):
    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(images)).mean((2, 3))


def simclr() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Net(), nn.Linear(4, 4), SimCLRAugment(8), NTXentLoss(temperature=0.5), num_classes=3)


def byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(Net(), nn.Linear(4, 4), nn.Linear(4, 4), SimCLRAugment(8), num_classes=3)


def embeddings(method):
    return method(method.views(IMAGES.images, method.keys(torch.arange(12), seed=0, epoch=0)))


@pytest.mark.parametrize("make", [simclr, byol])
def test_a_probe_learns_from_the_labelled_images_alone(make):
    method = make()
    found = embeddings(method)
    loss, metrics = method.loss(found, FEW.labels)
    plain = metrics["loss"]
    chosen = FEW.labels >= 0
    entropies = [functional.cross_entropy(found.logits_a[chosen], FEW.labels[chosen])]
    if make is simclr:
        entropies.append(functional.cross_entropy(found.logits_b[chosen], FEW.labels[chosen]))
    assert_close(loss, plain + torch.stack(entropies).mean())


@pytest.mark.parametrize("make", [simclr, byol])
def test_without_any_label_in_a_batch_a_probe_learns_nothing(make):
    method = make()
    loss, metrics = method.loss(embeddings(method), torch.full((12,), -1))
    assert_close(loss, metrics["loss"])
    assert metrics["probe_top1"] == 0


@pytest.mark.parametrize("make", [simclr, byol])
def test_of_several_domains_a_probe_takes_the_classes(make):
    method = make()
    found = embeddings(method)
    both = torch.stack([FEW.labels, torch.arange(12) % 2], dim=1)
    assert_close(method.loss(found, both)[0], method.loss(found, FEW.labels)[0])


def test_judges_that_need_every_label_say_so():
    transforms = {"transform": LinearEvalAugment(8), "test_transform": EvalTransform(8)}
    settings = transforms | {"epochs": 1, "batch_size": 4, "progress": False}
    with pytest.raises(InputError, match=f"^`train` {re.escape(NINE)}$"):
        linear_eval(Net(), FEW, IMAGES, **settings)
    with pytest.raises(InputError, match=f"^`test` {re.escape(NINE)}$"):
        linear_eval(Net(), IMAGES, FEW, **settings)
    with pytest.raises(InputError, match=f"^`train` {re.escape(NINE)}$"):
        fine_tune(Network(Net(), 3), FEW, IMAGES, labels=1, **settings)
    with pytest.raises(InputError, match=f"^`train` {re.escape(NINE)}$"):
        keep_labels(FEW, 1)


def test_what_looks_at_all_images_says_so_before_it_does(tmp_path):
    with pytest.raises(InputError, match=f"^`dataset` {re.escape(NINE)}$"):
        plot_neighbours(torch.rand(12, 4), FEW, tmp_path / "neighbours.png")
    with pytest.raises(InputError, match=f"^`dataset` {re.escape(NINE)}$"):
        in_memory(FEW)


def test_labels_may_be_a_list():
    assert Relabelled(IMAGES, [0, -1] * 6).labels.tolist() == [0, -1] * 6


def test_domains_are_not_lost_by_other_labels():
    both = DomainDataset({"a": IMAGES, "b": FEW})
    message = "`dataset` must be no DomainDataset: give other labels to the data sets of its domains."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Relabelled(both, torch.zeros(24))


def test_domains_whose_classes_have_no_name_in_common_are_refused():
    named = Relabelled(IMAGES, IMAGES.labels, classes=["cat", "dog", "cow"])
    message = (
        "`datasets` must have names of classes in common, they have none: a: ['cat', 'cow', 'dog']; b: ['0', '1', '2']."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        DomainDataset({"a": named, "b": IMAGES})


def test_a_domain_with_two_classes_of_one_name_is_refused():
    cranes = Relabelled(IMAGES, IMAGES.labels, classes=["crane", "dog", "crane"])
    message = "`datasets` must have classes of different names, b has 'crane' more than once."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        DomainDataset({"a": IMAGES, "b": cranes})


def test_domains_without_any_label_are_refused():
    none = keep_labels(IMAGES, 0)
    with pytest.raises(InputError, match=r"^`datasets` must have labels in at least one domain, none has any\.$"):
        DomainDataset({"a": none, "b": none})
