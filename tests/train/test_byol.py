"""BYOL as a method: each view by itself, a target that follows, chunks that cost nothing, and its two collapses."""

import copy
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from functools import partialmethod
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from cl_augment import BYOLAugment, SimCLRAugment, sample_keys
from cl_models import BYOLHead, resnet18
from cl_train import (
    BYOL,
    LARS,
    ArrayDataset,
    HealthWarning,
    InputError,
    Method,
    lars_groups,
    make_accelerator,
    pretrain,
)
from cl_train import _health as verdicts
from cl_train._byol import BYOLEmbeddings
from cl_train._contrast_figures import bootstrap_figures
from cl_train._global_norm import _ONCE
from cl_train._health import no_predictor, no_target
from cl_train._loader import Batch
from cl_train._step import Gradient
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

IMAGES, BATCH, EPOCHS = 30, 14, 4
STEPS = EPOCHS * (IMAGES // BATCH)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


class Net(nn.Module):
    """A layer of it looks at other images when `norm` is BatchNorm."""

    feature_dim = 6

    def __init__(self, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), norm(6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def head(inputs: int, norm) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 8), nn.BatchNorm1d(8) if norm is nn.BatchNorm2d else norm(8), nn.Tanh(), nn.Linear(8, 4)
    )


def byol(norm=nn.BatchNorm2d, *, decay: float = 0.7, num_classes: int | None = 3, kind=BYOL) -> BYOL:
    """Equal at each call, in float64."""
    torch.manual_seed(0)
    method = kind(Net(norm), head(6, norm), head(4, norm), BYOLAugment(8), decay, num_classes=num_classes)
    return method.double().train()


def led_away(method: BYOL) -> BYOL:
    """As in the middle of a run: the target has other weights than the online network, and statistics of its own."""
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return method


def pixels(n: int = IMAGES) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def batch(n: int = BATCH) -> Batch:
    return Batch(pixels(n), sample_keys(torch.arange(n), seed=0, epoch=0), torch.arange(n) % 3)


def embeddings(*fields: Tensor) -> BYOLEmbeddings:
    """Of predictions and targets only: q_a, q_b, z_a, z_b."""
    return BYOLEmbeddings(fields[0], fields[1], *fields, None)


def data() -> ArrayDataset:
    return ArrayDataset(pixels(), torch.arange(IMAGES) % 3)


def run(out, method: BYOL, *, dataset: ArrayDataset | None = None, **changes):
    """`pretrain` by LARS as BYOL's authors have it, with steps that are large enough to see."""
    optimizer = LARS(lars_groups(method, weight_decay=1e-3), 0.5, eta=0.1, lr_in_momentum=False)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "warmup_epochs": 1, "log_every": 3, "checkpoint_every": 1}
    settings |= {"keep_checkpoints": 2 * STEPS, "workers": 0, "mixed_precision": "no", "progress": False}
    return pretrain(method, dataset or data(), out=out, optimizer=optimizer, **settings | changes)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def online(method: BYOL) -> dict[str, Tensor]:
    return weights(nn.Sequential(method.encoder, method.projector))


def tau(k: int, *, decay: float = 0.7, steps: int = STEPS) -> float:
    return 1 - (1 - decay) * (math.cos(math.pi * k / steps) + 1) / 2


# The loss


def loop(q_a: Tensor, q_b: Tensor, z_a: Tensor, z_b: Tensor) -> float:
    """The paper's loss, image by image and number by number."""

    def cosine(x: list[float], y: list[float]) -> float:
        return sum(map(float.__mul__, x, y)) / math.hypot(*x) / math.hypot(*y)

    values = []
    for a, b, c, d in zip(q_a.tolist(), q_b.tolist(), z_a.tolist(), z_b.tolist(), strict=True):
        values.append((2 - 2 * cosine(a, d)) + (2 - 2 * cosine(b, c)))
    return sum(values) / len(values)


def test_byol_is_a_method_whose_images_need_no_other_one():
    assert isinstance(byol(), Method)
    assert byol().per_image
    assert byol().negatives(4096) is None


def test_the_loss_is_the_papers_both_ways():
    fields = torch.randn(4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss, metrics = byol(num_classes=None).loss(embeddings(*fields), None)
    assert loss.item() == pytest.approx(loop(*fields), rel=1e-13)
    assert metrics.keys() == {"loss"}
    assert metrics["loss"].item() == loss.item()
    crossed = loop(fields[0], fields[1], fields[3], fields[2])  # each with the target of its own view
    assert abs(crossed - loss.item()) > 0.1


@pytest.mark.parametrize(("place", "value"), [("equal", 0), ("orthogonal", 4), ("opposite", 8)])
def test_the_loss_of_equal_orthogonal_and_opposite_rows_is_0_4_and_8(place, value):
    q = torch.eye(6, dtype=torch.float64)
    z = {"equal": 3 * q, "orthogonal": q.roll(1, 0), "opposite": -0.5 * q}[place]
    assert byol(num_classes=None).loss(embeddings(q, q, z, z), None)[0].item() == pytest.approx(value, abs=1e-14)


# A step


def gradient(method: Method, *, share: int = BATCH, chunk_size: int = BATCH, accumulate: int = 1) -> Gradient:
    accelerator = make_accelerator("no")
    return Gradient(method, method, accelerator, method.views, share, chunk_size, accumulate, "local", seed=3)


def found(method: BYOL, **settings) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """Gradients and metrics of a step."""
    method = copy.deepcopy(method)
    metrics = gradient(method, **settings)(batch(), 0)
    return {name: p.grad for name, p in method.named_parameters()}, metrics


def unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(1, keepdim=True).sqrt()


def by_hand(method: BYOL) -> nn.ModuleDict:
    """The networks after Algorithm 1's forwards and backward, in plain torch; `method` only gives copies to start."""
    parts = nn.ModuleDict({name: copy.deepcopy(method.get_submodule(name)) for name in ("encoder", "projector")})
    parts["predictor"], parts["classifier"] = copy.deepcopy(method.predictor), copy.deepcopy(method.classifier)
    parts["target"] = copy.deepcopy(method.target.module)
    given = batch()
    view_a, view_b = method.augment(given.images, given.keys)
    features_a = parts["encoder"](view_a)
    q_a = parts["predictor"](parts["projector"](features_a))
    q_b = parts["predictor"](parts["projector"](parts["encoder"](view_b)))
    with torch.no_grad():
        z_a, z_b = parts["target"](view_a), parts["target"](view_b)
    distances = (unit(q_a) - unit(z_b)).square().sum(1) + (unit(q_b) - unit(z_a)).square().sum(1)
    log_p = parts["classifier"](features_a.detach()).log_softmax(1)
    (distances.mean() - log_p[torch.arange(BATCH), given.labels].mean()).backward()
    return parts


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm])
def test_the_gradient_of_a_step_is_that_of_two_views_that_go_through_by_themselves(norm):
    method = led_away(byol(norm))
    parts, (grads, _) = by_hand(method), found(method)
    expected = {name: parameter.grad for name, parameter in parts.named_parameters()}
    expected = {name.replace("target.", "target.module."): value for name, value in expected.items()}
    assert grads.keys() == expected.keys()
    assert all((grads[name] is None) == name.startswith("target.") for name in grads)
    learning = [name for name in grads if grads[name] is not None]
    assert_close([grads[name] for name in learning], [expected[name] for name in learning], rtol=1e-10, atol=1e-12)


def test_online_network_and_target_have_running_statistics_of_their_own_batches():
    method = led_away(byol())
    parts = by_hand(method)
    gradient(method)(batch(), 0)
    for name in ("encoder", "projector", "predictor"):
        assert_close(dict(method.get_submodule(name).named_buffers()), dict(parts[name].named_buffers()))
    assert_close(dict(method.target.module.named_buffers()), dict(parts["target"].named_buffers()))
    name = "layers.1.num_batches_tracked"
    assert method.encoder.get_buffer(name) == method.target.module[0].get_buffer(name) == 2  # once a view


def test_the_target_begins_as_a_copy_and_asks_for_no_gradient():
    method = byol()
    assert tiny.gap(weights(method.target.module), online(method)) == 0
    assert not any(parameter.requires_grad for parameter in method.target.parameters())
    found = method(method.views(*batch()[:2]))
    assert found.q_a.requires_grad
    assert found.q_b.requires_grad
    assert not any(field.requires_grad for field in (found.p_a, found.p_b, found.z_a, found.z_b))


def test_the_optimiser_does_not_decay_the_target(tmp_path):
    method = byol(decay=1.0)  # nothing else would move it
    start = weights(method.target.module)
    run(tmp_path, method, epochs=2)
    assert tiny.gap(weights(method.target.module), start) == 0
    assert tiny.gap(online(method), start) > 1e-2


# The target


class Recorded(BYOL):
    """Notes all it has at the start of each step, and may spoil the loss of some."""

    bad = ()

    def forward(self, views):
        self.noted = [*getattr(self, "noted", []), {n: v.clone() for n, v in self.state_dict().items()}]
        return super().forward(views)

    def loss(self, embeddings, labels):
        loss, metrics = super().loss(embeddings, labels)
        return (loss * torch.nan if len(self.noted) - 1 in self.bad else loss), metrics


def moved(before: dict[str, Tensor], after: dict[str, Tensor], decay: float) -> float:
    """How far the target is from where a step with this decay takes it."""
    gaps = []
    for name, value in after.items():
        place = name.removeprefix("target.module.")
        if name != place and not re.search("running|tracked", name):
            source = after[place.replace("0.", "encoder.", 1) if place[0] == "0" else f"projector.{place[2:]}"]
            gaps.append((value - (decay * before[name] + (1 - decay) * source)).abs().max().item())
    assert len(gaps) == 10
    return max(gaps)


def snapshots(out, **changes) -> list[dict[str, Tensor]]:
    """What the method had before each step and at the end."""
    method = byol(kind=Recorded)
    method.bad = changes.pop("bad", ())
    run(out, method, **changes)
    return [*method.noted, dict(method.state_dict())]


def test_after_each_step_the_target_moves_by_the_decay_of_that_step(tmp_path):
    noted = snapshots(tmp_path)
    assert len(noted) == STEPS + 1
    for k, (before, after) in enumerate(pairwise(noted)):
        assert moved(before, after, tau(k)) < 1e-14
        assert after["target.step"] == k + 1
    assert moved(noted[3], noted[4], tau(2)) > 1e-4  # a step late, it would be seen


def test_the_target_is_the_average_of_all_earlier_weights(tmp_path):
    noted = []

    class Noting(BYOL):
        def after_step(self, step, total_steps):
            noted.append((step, total_steps, online(self)))
            super().after_step(step, total_steps)

    method = byol(kind=Noting)
    average = online(method)
    run(tmp_path, method)
    assert [entry[:2] for entry in noted] == [(k, STEPS) for k in range(STEPS)]
    for k, _, theta in noted:
        average = {name: tau(k) * average[name] + (1 - tau(k)) * theta[name] for name in theta}
    assert tiny.gap(weights(method.target.module), average) < 1e-13
    assert tiny.gap(average, online(method)) > 1e-2


@pytest.mark.parametrize("bad", [[0], [3, 4], [STEPS - 1]])
def test_a_step_that_is_taken_back_moves_no_target_and_later_ones_keep_their_decay(tmp_path, bad):
    noted = snapshots(tmp_path, bad=bad, on_nonfinite="skip")
    for k, (before, after) in enumerate(pairwise(noted)):
        if k in bad:
            assert tiny.gap(after, before) == 0
        else:
            assert moved(before, after, tau(k)) < 1e-14
            assert after["target.step"] == k + 1


def test_a_run_that_is_stopped_by_a_bad_step_has_the_target_before_it(tmp_path):
    whole = snapshots(tmp_path / "whole")
    with pytest.raises(FloatingPointError, match="is not finite at step 3;"):
        snapshots(tmp_path / "stopped", bad=[3])
    assert tiny.gap(tiny.saved(tmp_path / "stopped", step=3), tiny.saved(tmp_path / "whole", step=3)) == 0
    method = byol()
    run(tmp_path / "stopped", method)
    assert tiny.gap(dict(method.state_dict()), whole[-1]) == 0


def test_a_step_that_the_scaler_skipped_moves_no_target(tmp_path, monkeypatch):
    """What the scaler of fp16 says, which runs on CUDA only, is played by the optimiser that Accelerate prepares."""
    method = byol(kind=Recorded)
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: len(method.noted) - 1 == 3))
    run(tmp_path, method)
    targets = [
        {name: v for name, v in noted.items() if re.match("target.*(weight|bias|step)", name)} for noted in method.noted
    ]
    assert tiny.gap(targets[4], targets[3]) == 0
    assert tiny.gap(targets[5], targets[4]) > 0
    assert moved(method.noted[4], method.noted[5], tau(4)) < 1e-14


# Chunks


@pytest.mark.parametrize("chunk_size", range(1, BATCH + 2))
def test_without_batchnorm_chunks_of_any_size_give_the_gradient_of_the_whole_batch(chunk_size):
    method = led_away(byol(group_norm))
    (whole, expected), (grads, metrics) = found(method), found(method, chunk_size=chunk_size)
    assert_close(grads, whole, rtol=1e-10, atol=1e-13)
    assert_close(metrics["loss"], expected["loss"], rtol=1e-10, atol=0)
    assert metrics["probe_top1"].item() == pytest.approx(expected["probe_top1"].item(), abs=1e-6)
    assert metrics["finite"]


@pytest.mark.parametrize("accumulate", [2, 7, 14])
def test_without_batchnorm_parts_with_a_loss_each_give_that_gradient_too(accumulate):
    method = led_away(byol(group_norm))
    (whole, _), (grads, _) = found(method), found(method, accumulate=accumulate)
    assert_close(grads, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("chunk_size", "sizes"), [(14, [14]), (5, [4, 5, 5]), (13, [7, 7])])
def test_each_chunk_goes_through_each_network_once_a_view(chunk_size, sizes):
    method, seen = byol(), {"online": [], "target": []}
    for name, module in (("online", method.encoder), ("target", method.target.module[0])):
        module.register_forward_hook(lambda _, inputs, output, name=name: seen[name].append(len(inputs[0])))
    gradient(method, chunk_size=chunk_size)(batch(), 0)
    assert seen == {"online": [n for n in sizes for _ in "ab"], "target": [n for n in sizes for _ in "ab"]}


def test_running_statistics_move_with_those_of_the_first_chunk():
    chunked, alone = led_away(byol()), led_away(byol())
    gradient(chunked, chunk_size=5)(batch(), 0)
    gradient(alone, share=4)(Batch(*(part[:4] for part in batch()[:3])), 0)
    assert_close(dict(chunked.named_buffers()), dict(alone.named_buffers()), rtol=0, atol=0)


def test_global_statistics_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"^{re.escape(_ONCE)}$"):
        run(tmp_path, byol(), batchnorm="global", chunk_size=7)


def test_no_chunk_is_left_with_one_image_that_batchnorm_refuses(tmp_path):
    assert run(tmp_path, byol(), chunk_size=BATCH - 1, epochs=1).steps == 2


def test_the_figures_of_chunks_are_those_of_the_whole_batch(tmp_path):
    """Not of the last chunk, of one image here, which has no figures."""
    logs = []
    for chunk_size in (None, 1, 5):
        method = led_away(byol(group_norm))
        run(tmp_path / str(chunk_size), method, chunk_size=chunk_size, epochs=1)
        logs.append(tiny.log_of(tmp_path / str(chunk_size))[-1])
    assert logs[0].keys() >= {"spread", "effective_rank", "predictor_change", "target_lag"}
    for log in logs[1:]:
        assert log == pytest.approx(logs[0], rel=1e-5)


# A run that goes on


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_run_that_was_cut_ends_as_the_uncut_one_bit_for_bit(tmp_path, cut):
    run(tmp_path / "whole", byol(), log_every=1)
    run(tmp_path / "cut", byol(), log_every=1, max_steps=cut)
    method = byol()
    run(tmp_path / "cut", method, log_every=1)
    whole = tiny.saved(tmp_path / "whole", step=STEPS)
    assert tiny.gap(tiny.saved(tmp_path / "cut", step=STEPS), whole) == 0
    assert any(name.startswith("momentum_buffer") for name in whole)
    assert whole["target.step"] == method.target.step == STEPS
    assert tiny.log_of(tmp_path / "cut") == tiny.log_of(tmp_path / "whole")


class Dying(BYOL):
    """Is killed in its fourth step, between forward and backward."""

    steps = 0

    def loss(self, embeddings, labels):
        self.steps += 1
        if self.steps == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(embeddings, labels)


def test_a_run_that_was_killed_within_a_step_ends_as_the_whole_one_bit_for_bit(tmp_path):
    run(tmp_path / "whole", byol())
    # a process of its own, as autograd refuses to run in a fork of one that has used its threads
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    threads = str(torch.get_num_threads())  # sums over others differ in the last bit
    words = [sys.executable, __file__, str(tmp_path / "killed"), threads]
    killed = subprocess.run(words, env=paths, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert max(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()) == "step-00000002"
    run(tmp_path / "killed", byol(), checkpoint_every=2)
    whole = tiny.saved(tmp_path / "whole", step=STEPS)
    assert tiny.gap(tiny.saved(tmp_path / "killed", step=STEPS), whole) == 0
    assert tiny.log_of(tmp_path / "killed") == tiny.log_of(tmp_path / "whole")


# The classifier


def test_the_classifier_sees_the_first_view_alone():
    method = byol(group_norm)
    views = method.views(*batch()[:2])
    assert_close(method(views).logits_a, method.classifier(method.encoder(views[:BATCH])))
    other = torch.cat([views[:BATCH], torch.rand_like(views[BATCH:])])
    assert torch.equal(method(other).logits_a, method(views).logits_a)


def test_the_classifier_sends_no_gradient_to_the_encoder():
    method = byol()
    functional.cross_entropy(method(method.views(*batch()[:2])).logits_a, batch().labels).backward()
    assert [name for name, p in method.named_parameters() if p.grad is not None] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_its_weight_is_adapted_and_decayed_as_others():
    method = byol()
    adapted, plain = lars_groups(method, weight_decay=1e-6)
    assert any(parameter is method.classifier.weight for parameter in adapted["params"])
    assert any(parameter is method.classifier.bias for parameter in plain["params"])
    assert (adapted["adapt"], adapted["weight_decay"]) == (True, 1e-6)
    grouped = {id(parameter) for group in (adapted, plain) for parameter in group["params"]}
    assert not grouped & {id(parameter) for parameter in method.target.parameters()}


def test_the_log_holds_the_loss_without_the_classifiers_and_its_share_of_hits():
    method = byol()
    seen = method(method.views(*batch()[:2]))
    loss, metrics = method.loss(seen, batch().labels)
    assert metrics["loss"].item() == pytest.approx(loop(seen.q_a, seen.q_b, seen.z_a, seen.z_b), rel=1e-12)
    entropy = -sum(seen.logits_a.log_softmax(1)[i, i % 3].item() for i in range(BATCH)) / BATCH
    assert loss.item() - metrics["loss"].item() == pytest.approx(entropy, rel=1e-12)
    hits = sum(int(row.argmax()) == i % 3 for i, row in enumerate(seen.logits_a)) / BATCH
    assert metrics["probe_top1"].item() == pytest.approx(hits)


def test_a_classifier_without_labels_is_refused():
    method = byol()
    with pytest.raises(InputError, match=r"^`num_classes` asks for a probe, but the data set has no labels\.$"):
        method.loss(method(method.views(*batch()[:2])), None)


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_out_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"^`decay` must be from 0 to 1, got {decay}\.$"):
        byol(decay=decay)


# Health


def test_predictions_that_are_the_projections_are_of_no_predictor():
    assert no_predictor(1e-9) is None
    assert no_predictor(0.99e-9).name == "no predictor"


def test_a_target_that_is_the_online_network_is_none_of_its_own():
    assert no_target(1e-9, step=100) is None
    assert no_target(0.99e-9, step=100).name == "no target of its own"


def test_a_target_begins_as_a_copy_and_a_warm_up_at_a_rate_of_0():
    assert no_target(0.0, step=99) is None


def test_a_verdict_names_its_number_and_what_to_do():
    predictor, target = no_predictor(0.0), no_target(1.5e-12, step=100)
    assert predictor.figure == "the predictions are 0 from the projections they are made of (healthy: above 1e-09)"
    assert (
        predictor.remedy == "without a predictor that learns, BYOL collapses: give it one, such as cl_models.BYOLHead"
    )
    assert target.figure == "the target's projections are 1.5e-12 from the online network's (healthy: above 1e-09)"
    assert target.remedy.endswith("an average of earlier weights, with its gradient stopped: without, BYOL collapses")


def test_figures_are_mean_squared_distances_of_unit_rows():
    fields = torch.randn(6, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    figures = bootstrap_figures(BYOLEmbeddings(*fields, None))
    p, q, z = (unit(torch.cat([fields[i], fields[i + 1]])) for i in (0, 2, 4))
    assert figures["predictor_change"].item() == pytest.approx((p - q).square().sum(1).mean().item())
    assert figures["target_lag"].item() == pytest.approx((p - z).square().sum(1).mean().item())
    p_a, p_b = p.chunk(2)
    assert figures["alignment"].item() == pytest.approx((p_a - p_b).square().sum(1).mean().item())


def test_equal_rows_in_float32_are_not_taken_for_rows_that_differ():
    rows = torch.randn(20, 8, 256, generator=torch.Generator().manual_seed(0))
    figures = [bootstrap_figures(BYOLEmbeddings(*[p] * 6, None)) for p in rows]
    assert all(found["predictor_change"] < 1e-14 and found["target_lag"] < 1e-14 for found in figures)


class Chained(BYOL):
    """Its target is the online network itself, gradient and all."""

    def forward(self, views):
        found = super().forward(views)
        p_a, p_b = (self.projector(self.encoder(view)) for view in views.chunk(2))
        return found._replace(p_a=p_a, p_b=p_b, z_a=p_a, z_b=p_b)

    def loss(self, embeddings, labels):
        q_a, q_b, z_a, z_b = (functional.normalize(field) for field in embeddings[2:6])
        loss = (q_a - z_b).square().sum(1).mean() + (q_b - z_a).square().sum(1).mean()
        return loss, {"loss": loss.detach()}


def textures(n=64) -> Tensor:
    """Coloured blobs of some pixels."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, size=8, mode="bicubic").clamp(0, 1)


def findings(out, *, kind=BYOL, predictor=None, **changes) -> list[str]:
    """What a run of a small ResNet warns of."""
    torch.manual_seed(5)
    encoder = resnet18(width=0.0625, stem="cifar")
    predictor = BYOLHead(16, 64, 16) if predictor is None else predictor
    method = kind(encoder, BYOLHead(32, 64, 16), predictor, SimCLRAugment(8, strength=0.5, blur=False), 0.9)
    optimizer = torch.optim.SGD(method.parameters(), 0.2, momentum=0.9, weight_decay=1e-4)
    settings = {"epochs": 12, "batch_size": 32, "warmup_epochs": 1, "workers": 0, "progress": False}
    settings |= {"mixed_precision": "no"} | changes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HealthWarning)
        pretrain(method, ArrayDataset(textures()), out=out, optimizer=optimizer, **settings)
    return [warning.message.finding for warning in caught]


@pytest.fixture
def early(monkeypatch):
    """What is ill is named from the third step on, the first that a step with a rate above 0 precedes."""
    monkeypatch.setattr(verdicts, "_FIRST_STEPS", 3)


@pytest.mark.usefixtures("early")
def test_a_run_that_is_well_is_left_alone(tmp_path):
    assert findings(tmp_path) == []


@pytest.mark.usefixtures("early")
def test_a_run_without_a_predictor_collapses_and_both_are_named(tmp_path):
    assert findings(tmp_path, predictor=nn.Identity()) == ["no predictor", "complete collapse"]


@pytest.mark.usefixtures("early")
def test_a_run_whose_target_is_the_online_network_collapses_and_both_are_named(tmp_path):
    assert findings(tmp_path, kind=Chained) == ["no target of its own", "complete collapse"]


# Precision and compilation


def test_compiled_views_are_the_views(monkeypatch):
    monkeypatch.setattr(BYOLAugment, "compile", partialmethod(BYOLAugment.compile, backend="eager"))
    method, (images, keys) = byol(), batch()[:2]
    compiled = method.compiled_views(torch.device("cpu"))
    assert_close(compiled(images, keys), method.views(images, keys), rtol=0, atol=1e-6)
    assert not method.augment._compiled


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_run_in_bf16_keeps_weights_and_target_in_float32(tmp_path, chunk_size):
    method, images = byol(num_classes=None).float(), ArrayDataset(pixels().float())
    dtypes = []
    method.target.module[0].layers[0].register_forward_hook(lambda *hooked: dtypes.append(hooked[2].dtype))
    result = run(tmp_path, method, dataset=images, mixed_precision="bf16", chunk_size=chunk_size, epochs=1)
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
    assert 0 < result.history[-1]["loss"] < 8


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    run(Path(sys.argv[1]), byol(kind=Dying), checkpoint_every=2)
