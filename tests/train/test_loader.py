"""Batches: who reads which images, and that files and memory give the same views."""

import re
from itertools import chain

import numpy as np
import pytest
import torch
from cl_augment import EvalTransform, SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, FolderDataset, InputError, SimCLR, _loader, _plan, _readers, in_memory
from cl_train._batch import HostCuts
from cl_train._loader import batches, epoch_ids
from cl_train._plan import Plan
from PIL import Image
from torch import nn

CPU = torch.device("cpu")
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


def simclr() -> SimCLR:
    return SimCLR(nn.Identity(), nn.Identity(), SimCLRAugment(8, blur=True), NTXentLoss(temperature=0.5))


def views_of(dataset, *, workers=0) -> list[torch.Tensor]:
    method = simclr()
    numbers = epoch_ids(12, batch_size=4, seed=0, epoch=0, process=0, processes=1)
    keys = [method.keys(n, seed=0, epoch=0) for n in numbers]
    shares = zip(numbers, keys, strict=True)
    source = batches(dataset, shares, cut=method.cut, workers=workers, device=CPU)
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
    found = list(batches(dataset, zip(numbers, keys, strict=True), cut=cut, workers=0, device=CPU))
    assert [batch.labels.tolist() for batch in found] == [folder.labels[n].tolist() for n in numbers]
    assert [batch.keys.tolist() for batch in found] == [[70, 1], [5, 6]]


def test_a_file_is_cut_with_its_own_key(folder):
    def cut(image, key):
        return image[:, :1, :1, :1].long() * 1000 + key

    found = list(
        batches(
            folder,
            [(torch.tensor([7, 0]), torch.tensor([70, 1]))],
            cut=cut,
            workers=0,
            device=CPU,
        )
    )
    corner = [int(folder.read(number)[0, 0, 0]) for number in (7, 0)]
    assert found[0].images.flatten().tolist() == [corner[0] * 1000 + 70, corner[1] * 1000 + 1]


def test_images_in_memory_come_uncut():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 2, 2).contiguous()

    def cut(image, key):
        raise AssertionError("cut must not be called")

    numbers = [(torch.tensor([4, 1]), torch.tensor([4, 1]))]
    found = list(batches(ArrayDataset(images), numbers, cut=cut, workers=None, device=CPU))
    assert torch.equal(found[0].images, images[[4, 1]])


def test_without_labels_a_batch_has_none():
    numbers = [(torch.tensor([0, 1]), torch.tensor([0, 1]))]
    dataset = ArrayDataset(torch.zeros(2, 3, 4, 4))
    found = list(batches(dataset, numbers, cut=EvalTransform(8), workers=0, device=CPU))
    assert found[0].labels is None


# Batches that stay on the host


@pytest.mark.parametrize("kind", ["files", "memory"])
@pytest.mark.parametrize("size", [1, 5, 7, 40])
def test_chunks_of_a_batch_on_the_host_are_those_of_the_batch(folder, kind, size):
    dataset = folder if kind == "files" else in_memory(folder)
    ids = torch.arange(40) % 12  # more than a piece
    options = {"cut": simclr().cut, "workers": 0, "device": CPU}
    (whole,) = batches(dataset, [(ids, ids)], **options)
    (batch,) = batches(dataset, [(ids, ids)], host=True, **options)
    chunks = [chunk.to(CPU) for chunk in batch.split(size, share=len(batch.keys))]
    assert len(chunks) == -(-40 // size)
    for place in range(2 if kind == "files" else 1):
        parts = [chunk.images[place] if kind == "files" else chunk.images for chunk in chunks]
        assert torch.equal(torch.cat(parts), whole.images[place] if kind == "files" else whole.images)
    assert torch.equal(torch.cat([chunk.keys for chunk in chunks]), ids)
    assert torch.equal(torch.cat([chunk.labels for chunk in chunks]), folder.labels[ids])


# Images that cannot be read


def damaged(folder, *numbers) -> None:
    for number in numbers:
        open(folder.files[number], "w").close()


@few_cores
@forking
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_left_out_and_named(folder, workers):
    ids = torch.tensor([7, 3, 0, 11, 5])
    keys = ids + 100
    options = {"cut": simclr().cut, "workers": workers, "device": CPU}
    (whole,) = batches(folder, [(ids, keys)], **options)
    damaged(folder, 3, 5)
    (batch,) = batches(folder, [(ids, keys)], skip_unreadable=True, **options)
    kept = [0, 2, 3]
    assert batch.skipped == (folder.files[3], folder.files[5])
    assert batch.keys.tolist() == [107, 100, 111]
    assert torch.equal(batch.labels, whole.labels[kept])
    for found, expected in zip(batch.images, whole.images, strict=True):
        assert torch.equal(found, expected[kept])


@pytest.mark.parametrize("first", [0, 1, 31, 32, 33])
def test_images_are_left_out_at_their_places_in_whatever_piece(folder, first):
    good, bad = 2, 4
    ids = torch.full((70,), good)
    ids[first : first + 33] = bad  # a whole piece, perhaps
    damaged(folder, bad)
    keys = torch.arange(70)
    (batch,) = batches(folder, [(ids, keys)], cut=EvalTransform(8), workers=0, device=CPU, skip_unreadable=True)
    assert batch.keys.tolist() == keys[ids == good].tolist()
    assert batch.skipped == (folder.files[bad],) * 33
    assert len(batch.images) == len(batch.labels) == 37


def test_the_first_image_that_cannot_be_read_ends_the_run_unless_it_may_be_left_out(folder):
    damaged(folder, 3, 5)
    ids = torch.tensor([7, 3, 0, 11, 5])
    with pytest.raises(InputError, match=f"^{re.escape(folder.files[3])} cannot be decoded as an image"):
        list(batches(folder, [(ids, ids)], cut=EvalTransform(8), workers=0, device=CPU))


def test_a_batch_of_which_fewer_than_two_images_can_be_read_is_refused(folder):
    damaged(folder, 3, 5)
    ids = torch.tensor([3, 0, 5])
    message = f"a batch must have at least 2 images that can be read on each process; {folder.files[5]} cannot be dec"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        list(batches(folder, [(ids, ids)], cut=EvalTransform(8), workers=0, device=CPU, skip_unreadable=True))


# The batches of a run


def views_of_run(folder, *, start=0, workers=0, stop=9) -> list[torch.Tensor]:
    method, plan = simclr(), Plan(folder, batch_size=4, epochs=3, seed=1, process=0, processes=1)
    found = []
    for step, batch in plan.batches(start, stop, method=method, workers=workers, device=CPU):
        assert step == start + len(found)
        moved = batch.to(CPU)
        found.append(method.views(moved.images, moved.keys))
    return found


@few_cores
@forking
@pytest.mark.parametrize(("start", "workers"), [(0, 2), (2, 0), (5, 2), (9, 0)])
def test_a_run_that_goes_on_makes_the_views_that_it_would_have(folder, start, workers):
    whole, rest = views_of_run(folder), views_of_run(folder, start=start, workers=workers)
    assert len(rest) == 9 - start
    for found, expected in zip(rest, whole[start:], strict=True):
        assert torch.equal(found, expected)


def test_cuts_of_files_wait_on_the_host_until_they_are_used(folder):
    plan = Plan(folder, batch_size=4, epochs=1, seed=1, process=0, processes=1)
    for _, batch in plan.batches(0, 3, method=simclr(), workers=0, device=CPU):
        assert isinstance(batch.images, HostCuts)


@few_cores
@forking
def test_one_set_of_workers_reads_all_epochs(folder, monkeypatch):
    made, loader = [], _readers.DataLoader
    monkeypatch.setattr(_readers, "DataLoader", lambda *args, **options: made.append(1) or loader(*args, **options))
    assert len(views_of_run(folder, workers=2)) == 9
    assert len(made) == 1


def test_orders_of_epochs_to_come_are_not_made_before_they_are_needed(folder, monkeypatch):
    epochs = []
    monkeypatch.setattr(
        _plan, "epoch_ids", lambda *args, **options: epochs.append(options["epoch"]) or epoch_ids(*args, **options)
    )
    plan = Plan(folder, batch_size=4, epochs=1000, seed=1, process=0, processes=1)
    found = plan.batches(0, 3000, method=simclr(), workers=0, device=CPU)
    for _ in range(4):
        next(found)
    found.close()
    assert epochs == [0, 1]


@pytest.mark.parametrize(("free", "times"), [(6 * 8, 0), (6 * 8 + 1, 1)])
def test_images_in_memory_move_to_a_gpu_that_has_room_for_eight_times_as_many(monkeypatch, free, times):
    images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
    ids, moved = torch.tensor([4, 2]), []
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
        patch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
        patch.setattr(_loader, "to_device", lambda tensor, device: tensor)
        (batch,) = batches(ArrayDataset(images), [(ids, ids)], cut=None, workers=0, device=torch.device("cuda"))
    assert [device.type for device in moved] == ["cuda"] * times
    assert batch.images.flatten().tolist() == [4, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("host", [True, False])
def test_a_gpu_gets_the_images_of_the_host(folder, host, monkeypatch):
    ids, device = torch.arange(12), torch.device("cuda")
    for dataset in (folder, in_memory(folder)):
        for workers in (0, 2):
            options = {"cut": simclr().cut, "workers": workers}
            (expected,) = batches(dataset, [(ids, ids)], device=CPU, **options)
            (batch,) = batches(dataset, [(ids, ids)], device=device, host=host, **options)
            found = batch.to(device)
            for part, other in zip(
                *(b.images if dataset is folder else [b.images] for b in (found, expected)), strict=True
            ):
                assert part.is_cuda
                assert torch.equal(part.cpu(), other)
