"""SimCLR as a method: one forward of both views, and a probe that the encoder does not feel."""

from functools import partialmethod

import pytest
import torch
from cl_augment import SimCLRAugment, sample_keys
from cl_losses import NTXentLoss
from cl_models import resnet18
from cl_train import ArrayDataset, InputError, Method, SimCLR, pretrain
from cl_train._simclr import SimCLREmbeddings
from torch import nn
from torch.nn import functional
from torch.testing import assert_close


def images(n=6, size=8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def simclr(**changes) -> SimCLR:
    torch.manual_seed(5)
    encoder = resnet18(width=0.0625, stem="cifar")
    projector = nn.Linear(encoder.feature_dim, 4)
    return SimCLR(encoder, projector, SimCLRAugment(8), NTXentLoss(temperature=0.5), **changes)


def views(method: SimCLR, n=6) -> torch.Tensor:
    return method.views(images(n), method.keys(torch.arange(n), seed=0, epoch=0))


def test_simclr_is_a_method():
    assert isinstance(simclr(), Method)


def test_keys_are_those_of_the_augmentation():
    ids = torch.tensor([4, 1])
    assert torch.equal(simclr().keys(ids, seed=3, epoch=2), sample_keys(ids, seed=3, epoch=2))


def test_views_are_all_first_ones_then_all_second_ones():
    method, keys = simclr(), torch.arange(6)
    view_a, view_b = method.augment(images(), keys)
    assert torch.equal(method.views(images(), keys), torch.cat([view_a, view_b]))
    cuts = method.augment.cut(images(), keys)
    assert torch.equal(method.views(cuts, keys), torch.cat([view_a, view_b]))


def test_compiled_views_are_the_views_and_leave_the_method_as_it_is(monkeypatch):
    quick = partialmethod(SimCLRAugment.compile, backend="eager")
    monkeypatch.setattr(SimCLRAugment, "compile", quick)
    method, keys = simclr(), torch.arange(6)
    method.augment = SimCLRAugment(8, strength=0.0, blur=False)  # little to trace
    compiled = method.compiled_views(torch.device("cpu"))
    assert_close(compiled(images(), keys), method.views(images(), keys), rtol=0, atol=1e-5)
    assert compiled.args[0]._compiled
    assert not method.augment._compiled


def test_views_of_cut_images_are_those_of_whole_ones():
    method, keys = simclr(), torch.arange(6)
    assert torch.equal(method.views(method.cut(images(), keys), keys), method.views(images(), keys))


def test_embeddings_are_projections_of_features_in_the_order_of_the_views():
    method = simclr(num_classes=3).eval()  # BatchNorm by its running statistics: each row by itself
    embeddings = method(views(method))
    z = torch.cat([embeddings.z_a, embeddings.z_b])
    one_by_one = [method.projector(method.encoder(view[None])) for view in views(method)]
    assert_close(z, torch.cat(one_by_one))


def test_logits_are_the_probe_of_the_features_of_both_views():
    method = simclr(num_classes=3).eval()
    embeddings = method(views(method))
    assert_close(torch.cat([embeddings.logits_a, embeddings.logits_b]), method.probe(method.encoder(views(method))))


def test_without_classes_there_is_no_probe():
    method = simclr()
    assert method.probe is None
    embeddings = method(views(method))
    assert embeddings.logits_a is None
    assert embeddings.logits_b is None


def test_the_loss_is_the_contrast_plus_the_cross_entropy_of_the_probe():
    method, labels = simclr(num_classes=3), torch.tensor([0, 1, 2, 0, 1, 2])
    embeddings = method(views(method))
    loss, _ = method.loss(embeddings, labels)
    contrast = NTXentLoss(temperature=0.5)(embeddings.z_a, embeddings.z_b)
    log_p = torch.log_softmax(torch.cat([embeddings.logits_a, embeddings.logits_b]).double(), dim=1)
    entropy = -sum(log_p[row, labels[row % 6]] for row in range(12)) / 12
    assert loss.item() == pytest.approx(contrast.item() + entropy.item(), abs=1e-5)


def test_the_log_holds_the_contrast_alone_and_the_share_of_hits():
    method, labels = simclr(num_classes=3), torch.tensor([0, 1, 2, 0, 1, 2])
    embeddings = method(views(method))
    _, metrics = method.loss(embeddings, labels)
    logits = torch.cat([embeddings.logits_a, embeddings.logits_b])
    hits = sum(int(logits[row].argmax()) == int(labels[row % 6]) for row in range(12))
    assert set(metrics) == {"loss", "contrast_top1", "probe_top1"}
    assert metrics["loss"].item() == NTXentLoss(temperature=0.5)(embeddings.z_a, embeddings.z_b).item()
    assert metrics["probe_top1"].item() == pytest.approx(hits / 12)


def test_what_is_logged_has_no_gradient():
    method = simclr(num_classes=3)
    _, metrics = method.loss(method(views(method)), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert not any(value.requires_grad for value in metrics.values())


def test_a_probe_without_labels_is_refused():
    method = simclr(num_classes=3)
    with pytest.raises(InputError, match="`num_classes` asks for a probe, but the data set has no labels"):
        method.loss(method(views(method)), None)


def test_without_labels_the_loss_is_the_contrast_alone():
    method = simclr()
    embeddings = method(views(method))
    loss, metrics = method.loss(embeddings, None)
    assert loss.item() == NTXentLoss(temperature=0.5)(embeddings.z_a, embeddings.z_b).item()
    assert set(metrics) == {"loss", "contrast_top1"}


@pytest.mark.parametrize("n", [6, 300])
def test_the_contrastive_accuracy_is_the_share_of_first_views_that_find_their_second_one(n):
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = torch.randn(2, n, 3, generator=generator)
    z_b[: n // 2] = 2 * z_a[: n // 2] + 0.1 * z_b[: n // 2]
    _, metrics = simclr().loss(SimCLREmbeddings(z_a, z_b, None, None), None)
    rows = min(n, 256)
    cosines = [[torch.cosine_similarity(a, b, dim=0).item() for b in z_b] for a in z_a[:rows]]
    hits = sum(max(range(n), key=row.__getitem__) == i for i, row in enumerate(cosines))
    assert 0.3 < hits / rows < 0.9
    assert metrics["contrast_top1"].item() == pytest.approx(hits / rows)


def test_the_probe_sends_no_gradient_to_the_encoder():
    method = simclr(num_classes=3)
    functional.cross_entropy(method(views(method)).logits_b, torch.zeros(6, dtype=torch.int64)).backward()
    assert all(parameter.grad is None for parameter in method.encoder.parameters())
    assert method.probe.weight.grad.abs().max() > 0


def test_the_contrast_sends_a_gradient_to_the_encoder():
    method = simclr()
    method.loss(method(views(method)), None)[0].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in method.encoder.parameters() if parameter.ndim > 1)


def test_the_probe_starts_near_zero():
    probe = simclr(num_classes=50).probe
    assert probe.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert probe.bias.abs().max() == 0


def test_each_step_is_one_forward_of_both_views(tmp_path):
    method, sizes = simclr(), []
    method.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    pretrain(
        method,
        ArrayDataset(images(12)),
        epochs=2,
        batch_size=6,
        out=tmp_path,
        mixed_precision="no",
        progress=False,
    )
    assert sizes == [12] * 4


def test_batchnorm_sees_both_views_in_one_forward():
    method = simclr().train()
    method(views(method))
    both = method.encoder.conv1(views(method)).transpose(0, 1).flatten(1)
    expected = 0.1 * both.mean(1)
    assert_close(method.encoder.bn1.running_mean, expected)
    assert method.encoder.bn1.num_batches_tracked == 1
