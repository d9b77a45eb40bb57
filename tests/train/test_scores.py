"""Accuracies and their interval, against scikit-learn and scipy."""

import pytest
import torch
from cl_train._scores import Scores, scores
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that know something, of eight classes of unequal size."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (300,), generator=generator) * torch.randint(2, (300,), generator=generator)
    return torch.randn(300, 8, generator=generator) + torch.nn.functional.one_hot(labels, 8), labels


def test_mean_per_class_is_sklearns_balanced_accuracy(case):
    logits, labels = case
    found = scores(logits, labels)
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)), abs=1e-12)
    assert abs(found.mean_per_class - found.top1) > 0.01


@pytest.mark.parametrize(("k", "name"), [(1, "top1"), (5, "top5")])
def test_top_k_is_sklearns(case, k, name):
    logits, labels = case
    assert getattr(scores(logits, labels), name) == top_k_accuracy_score(labels, logits.numpy(), k=k)


def test_a_class_without_a_test_image_is_left_out_of_the_mean():
    assert scores(torch.eye(3)[:2], torch.tensor([0, 2])).mean_per_class == 0.5


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (3, 10), (10, 10), (873, 1000), (49_000, 50_000)])
def test_the_interval_is_wilsons(hits, images):
    found = Scores(top1=hits / images, top5=1.0, mean_per_class=0.5, images=images).interval
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-7)
