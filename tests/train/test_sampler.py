"""A run whose images are chosen by a function of the step."""

import json
import re

import pytest
import torch
from cl_augment import SimCLRAugment, sample_keys
from cl_losses import CrossDomainLoss, NTXentLoss
from cl_train import (
    ArrayDataset,
    CrossDomain,
    DomainBatches,
    DomainDataset,
    InputError,
    SimCLR,
    pretrain,
)
from cl_train._plan import Plan
from torch import Tensor, nn

SETTINGS = {
    "epochs": 2,
    "batch_size": 4,
    "warmup_epochs": 0,
    "log_every": 1,
    "workers": 0,
    "mixed_precision": "no",
    "health": "off",
    "progress": False,
}
IMAGES = 12  # three steps in an epoch


class Often:
    """Image 0 in every batch, and three others."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def __call__(self, step: int) -> Tensor:
        return torch.tensor([0, *(1 + (3 * step + self.shift + k) % (IMAGES - 1) for k in range(3))])

    def __repr__(self) -> str:
        return f"Often({self.shift})"


class Net(nn.Module):
    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(images))).mean((2, 3))


def data(n: int = IMAGES, *, seed: int = 0) -> ArrayDataset:
    pixels = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ArrayDataset(pixels, torch.arange(n) % 2)


def simclr() -> SimCLR:
    torch.manual_seed(5)
    return SimCLR(Net(), nn.Linear(4, 3), SimCLRAugment(8), NTXentLoss(temperature=0.5))


def cross_domain() -> CrossDomain:
    torch.manual_seed(5)
    loss = CrossDomainLoss(temperature=0.5, unlabelled="own_domain")
    return CrossDomain(Net(), nn.Linear(4, 3), SimCLRAugment(8), loss)


def domains() -> DomainDataset:
    return DomainDataset({"synthetic": data(8), "real": ArrayDataset(data(6, seed=1).images)})


def plan(sampler=None, *, process: int = 0, processes: int = 1, **changes) -> Plan:
    arguments = {"dataset": data(), "batch_size": 4, "epochs": 2, "seed": 7} | changes
    return Plan(**arguments, process=process, processes=processes, sampler=sampler)


def batches(of: Plan, start: int = 0, stop: int = 6) -> list:
    found = of.batches(start, stop, method=simclr(), workers=0, device=torch.device("cpu"))
    return [batch for _, batch in found]


def run(out, sampler=None, *, method=None, dataset=None, **changes):
    method = method or simclr()
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
    return pretrain(method, dataset or data(), out=out, optimizer=optimizer, sampler=sampler, **SETTINGS | changes)


def weights(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def figures(history) -> list[dict]:
    """The log without the one figure that a clock makes."""
    return [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in history]


# Which images a step has, and their views


def test_a_step_has_the_images_that_the_sampler_gives():
    for step, batch in enumerate(batches(plan(Often()))):
        assert torch.equal(batch.images, data().images[Often()(step)])
        assert torch.equal(batch.labels, data().labels[Often()(step)])


def test_a_sampler_is_asked_for_no_step_but_those_that_are_taken():
    asked = []

    def sampler(step: int) -> Tensor:
        asked.append(step)
        return Often()(step)

    batches(plan(sampler), 2, 5)
    assert asked == [2, 3, 4]


def test_views_are_drawn_by_the_step():
    for step, batch in enumerate(batches(plan(Often()))):
        assert torch.equal(batch.keys, sample_keys(Often()(step), seed=7, epoch=step))


def test_an_image_that_comes_again_in_an_epoch_has_other_views():
    keys = [int(batch.keys[0]) for batch in batches(plan(Often()))]  # of image 0, six steps in two epochs
    assert len(set(keys)) == 6


def test_without_a_sampler_views_are_drawn_by_the_epoch():
    for step, batch in enumerate(batches(plan())):
        ids = plan().ids(step)
        assert torch.equal(batch.keys, sample_keys(ids, seed=7, epoch=step // 3))


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_processes_are_parts_of_the_same_batch(processes):
    whole = batches(plan(Often()))
    shares = [batches(plan(Often(), process=process, processes=processes)) for process in range(processes)]
    for step, batch in enumerate(whole):
        of_step = [share[step] for share in shares]
        assert all(len(part.keys) == 4 // processes for part in of_step)
        assert torch.equal(torch.cat([part.images for part in of_step]), batch.images)
        assert torch.equal(torch.cat([part.keys for part in of_step]), batch.keys)


def test_batches_go_on_from_any_step():
    whole, later = batches(plan(Often())), batches(plan(Often()), 4)
    for expected, found in zip(whole[4:], later, strict=True):
        assert torch.equal(found.keys, expected.keys)


def test_a_run_with_a_sampler_has_as_many_steps_as_one_without(tmp_path):
    assert run(tmp_path / "a", Often()).steps == run(tmp_path / "b").steps == 6


def test_another_sampler_gives_other_weights(tmp_path):
    found = []
    for shift in (0, 1):
        method = simclr()
        run(tmp_path / str(shift), Often(shift), method=method)
        found.append(method.encoder.conv.weight)
    assert not torch.equal(*found)


# A run that is cut


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_run_of_several_domains_that_was_cut_ends_with_the_weights_of_the_whole_one_bit_for_bit(tmp_path, cut):
    sampler = DomainBatches(domains(), batch_size=6)
    settings = {"dataset": domains(), "batch_size": 6, "epochs": 3}
    whole, parts = cross_domain(), cross_domain()
    expected = run(tmp_path / "whole", sampler, method=whole, **settings)
    assert expected.steps == 6
    run(tmp_path / "cut", sampler, method=parts, max_steps=cut, **settings)
    assert not torch.equal(parts.encoder.conv.weight, whole.encoder.conv.weight)
    again = cross_domain()  # as a new process would make it
    found = run(tmp_path / "cut", DomainBatches(domains(), batch_size=6), method=again, **settings)
    assert figures(found.history) == figures(expected.history)
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


def test_another_sampler_is_refused(tmp_path):
    saved = run(tmp_path, Often(), max_steps=2).checkpoint
    digest = "[0-9a-f]{16}"
    message = rf"^{re.escape(str(saved))} is of a run with sampler=Often {digest}, this one has sampler=Often {digest}:"
    with pytest.raises(InputError, match=message):
        run(tmp_path, Often(1))


@pytest.mark.parametrize(("before", "after"), [(Often(), None), (None, Often())], ids=["none any more", "a first one"])
def test_a_run_goes_on_with_a_sampler_only_where_it_had_one(tmp_path, before, after):
    run(tmp_path, before, max_steps=2)
    with pytest.raises(InputError, match=r"is of a run with.*sampler"):
        run(tmp_path, after)


def test_another_sampler_is_taken_where_it_may_change(tmp_path):
    run(tmp_path, Often(), max_steps=2)
    assert run(tmp_path, Often(1), may_change={"sampler"}).steps == 6


def test_what_the_sampler_is_stands_in_the_configuration(tmp_path):
    run(tmp_path, Often(3), max_steps=1)
    assert re.search(r'"Often [0-9a-f]{16}"', (tmp_path / "config.json").read_text())


def test_samplers_are_told_apart_by_their_batches_and_not_by_their_names(tmp_path):
    run(tmp_path, Often().__call__, max_steps=2)
    with pytest.raises(InputError, match=r"is of a run with sampler=method [0-9a-f]{16}, this one has sampler=method"):
        run(tmp_path, Often(1).__call__)
    assert run(tmp_path, Often().__call__).steps == 6


def test_a_run_without_sampler_is_identified_by_what_it_was_before_there_were_any(tmp_path):
    run(tmp_path, max_steps=1)
    assert "sampler" not in (tmp_path / "config.json").read_text()
    assert json.loads(json.dumps(plan().identity)) == {
        "images": 12,
        "batch_size": 4,
        "epochs": 2,
        "seed": 7,
        "processes": 1,
    }


# Samplers that are none


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.arange(3), "`sampler` must give int64 numbers of shape (4,), got torch.int64 (3,)."),
        (torch.arange(4).view(2, 2), "`sampler` must give int64 numbers of shape (4,), got torch.int64 (2, 2)."),
        (torch.arange(4.0), "`sampler` must give int64 numbers of shape (4,), got torch.float32 (4,)."),
        (torch.arange(4).int(), "`sampler` must give int64 numbers of shape (4,), got torch.int32 (4,)."),
        (torch.tensor([0, 1, 2, 12]), "`sampler` must give numbers of the 12 images, got [0, 1, 2, 12]."),
        (torch.tensor([0, -1, 2, 3]), "`sampler` must give numbers of the 12 images, got [0, -1, 2, 3]."),
        (
            torch.tensor([5, 1, 5, 2]),
            "`sampler` must give each image at most once in a batch: it would be its own negative.",
        ),
    ],
    ids=["fewer", "matrix", "float", "int32", "too large", "negative", "twice"],
)
def test_a_sampler_that_gives_something_else_is_refused(tmp_path, ids, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(tmp_path, lambda step: ids)
