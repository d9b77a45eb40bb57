"""Batches: who reads which images, and that files and memory give the same views."""

from itertools import chain

import numpy as np
import pytest
import torch
from cl_augment import EvalTransform, SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, FolderDataset, SimCLR
from cl_train._loader import batches, epoch_ids
from PIL import Image
from torch import nn

# what reading in worker processes may warn of on a small machine or a newer Python, and is no matter here
few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def ids(*, n=50, batch_size=12, seed=3, epoch=2, process=0, processes=1) -> list[list[int]]:
    found = epoch_ids(n, batch_size=batch_size, seed=seed, epoch=epoch, process=process, processes=processes)
    return [batch.tolist() for batch in found]


def joined(parts) -> list[int]:
    return list(chain.from_iterable(parts))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_shares_of_all_processes_in_order_are_the_batches_of_one(processes):
    shares = [ids(process=process, processes=processes) for process in range(processes)]
    together = [joined(parts) for parts in zip(*shares, strict=True)]
    assert together == ids()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_equally_large(processes):
    for process in range(processes):
        assert [len(batch) for batch in ids(process=process, processes=processes)] == [12 // processes] * 4


def test_no_image_comes_twice_in_an_epoch():
    seen = joined(ids())
    assert len(set(seen)) == len(seen)


def test_images_that_do_not_fill_a_batch_are_left_out():
    seen = joined(ids(n=50, batch_size=12))
    assert len(seen) == 48
    assert set(seen) < set(range(50))


def test_all_images_are_seen_when_they_fill_the_batches():
    assert sorted(joined(ids(n=48))) == list(range(48))


def test_other_epochs_leave_out_other_images():
    left_out = [frozenset(range(50)) - frozenset(joined(ids(epoch=epoch))) for epoch in range(5)]
    assert len(set(left_out)) > 1


def test_fewer_images_than_a_batch_make_no_batch():
    assert ids(n=11) == []


def test_the_order_does_not_depend_on_global_random_numbers():
    torch.manual_seed(1)
    np.random.seed(1)
    first = ids()
    torch.manual_seed(2)
    np.random.seed(2)
    assert ids() == first


def test_another_epoch_has_another_order():
    assert ids(epoch=0) != ids(epoch=1)


def test_another_seed_has_another_order():
    assert ids(seed=0) != ids(seed=1)


def test_seed_and_epoch_are_not_added_up():
    assert ids(seed=0, epoch=1) != ids(seed=1, epoch=0)


def test_the_order_is_numpys_permutation_of_seed_and_epoch():
    order = np.random.default_rng([3, 2]).permutation(50)
    assert joined(ids()) == order[:48].tolist()


# Reading: files and memory


@pytest.fixture
def folder(tmp_path) -> FolderDataset:
    """Twelve PNG files of equal size in three classes."""
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "data" / f"class {number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (11, 9, 3), dtype=np.uint8)).save(path)
    return FolderDataset(tmp_path / "data")


def in_memory(folder: FolderDataset) -> ArrayDataset:
    images = torch.stack([folder.read(i) for i in range(len(folder))])
    return ArrayDataset(images, folder.labels, classes=folder.classes)


def simclr() -> SimCLR:
    return SimCLR(nn.Identity(), nn.Identity(), SimCLRAugment(8, blur=True), NTXentLoss(temperature=0.5))


def views_of(dataset, *, workers=0) -> list[torch.Tensor]:
    method = simclr()
    numbers = epoch_ids(12, batch_size=4, seed=0, epoch=0, process=0, processes=1)
    keys = [method.keys(n, seed=0, epoch=0) for n in numbers]
    source = batches(dataset, numbers, keys, cut=method.cut, workers=workers, device=torch.device("cpu"))
    return [method.views(batch.images, batch.keys) for batch in source]


@few_cores
@forking
@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_the_views_of_images_in_memory_bit_for_bit(folder, workers):
    for from_files, from_memory in zip(views_of(folder, workers=workers), views_of(in_memory(folder)), strict=True):
        assert torch.equal(from_files, from_memory)


def test_views_of_different_images_differ(folder):
    views = torch.cat(views_of(folder))
    assert len(views.flatten(1).unique(dim=0)) == len(views) == 24


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_a_batch_has_the_labels_and_keys_of_its_numbers(folder, kind):
    dataset = folder if kind == "files" else in_memory(folder)
    numbers, keys = [torch.tensor([7, 0]), torch.tensor([11, 3])], [torch.tensor([70, 1]), torch.tensor([5, 6])]
    cut = EvalTransform(8)
    found = list(batches(dataset, numbers, keys, cut=cut, workers=0, device=torch.device("cpu")))
    assert [batch.labels.tolist() for batch in found] == [folder.labels[n].tolist() for n in numbers]
    assert [batch.keys.tolist() for batch in found] == [[70, 1], [5, 6]]


def test_a_file_is_cut_with_its_own_key(folder):
    def cut(image, key):
        return image[:, :1, :1, :1].long() * 1000 + key

    found = list(
        batches(
            folder,
            [torch.tensor([7, 0])],
            [torch.tensor([70, 1])],
            cut=cut,
            workers=0,
            device=torch.device("cpu"),
        )
    )
    corner = [int(folder.read(number)[0, 0, 0]) for number in (7, 0)]
    assert found[0].images.flatten().tolist() == [corner[0] * 1000 + 70, corner[1] * 1000 + 1]


def test_images_in_memory_come_uncut():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 2, 2).contiguous()

    def cut(image, key):
        raise AssertionError("cut must not be called")

    numbers = [torch.tensor([4, 1])]
    found = list(batches(ArrayDataset(images), numbers, numbers, cut=cut, workers=None, device=torch.device("cpu")))
    assert torch.equal(found[0].images, images[[4, 1]])


def test_without_labels_a_batch_has_none():
    numbers = [torch.tensor([0, 1])]
    dataset = ArrayDataset(torch.zeros(2, 3, 4, 4))
    found = list(batches(dataset, numbers, numbers, cut=EvalTransform(8), workers=0, device=torch.device("cpu")))
    assert found[0].labels is None
