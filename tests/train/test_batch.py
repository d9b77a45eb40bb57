"""Batches on the host: split and moved, they are the rows they were."""

import pytest
import torch
from cl_train import InputError
from cl_train._batch import Batch, HostCuts

CPU = torch.device("cpu")


def rows(n=11) -> torch.Tensor:
    return torch.arange(n * 3).reshape(n, 3, 1, 1).float()


def parts_of(images: torch.Tensor, *, pair: bool) -> HostCuts:
    """In parts of 4, 1 and the rest."""
    parts = images.split([4, 1, len(images) - 5])
    return HostCuts([(part, part + 100) for part in parts] if pair else list(parts))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 11, 20])
def test_parts_on_the_host_split_as_a_tensor_does(size):
    keys = torch.arange(11)
    whole = Batch(rows(), keys, None).split(size, share=11)
    found = Batch(parts_of(rows(), pair=False), keys, None).split(size, share=11)
    assert len(found) == len(whole)
    for part, expected in zip(found, whole, strict=True):
        assert torch.equal(part.to(CPU).images, expected.images)
        assert torch.equal(part.keys, expected.keys)


@pytest.mark.parametrize("size", [1, 3, 11])
def test_pairs_of_cuts_stay_together_when_they_are_split(size):
    found = [
        part.to(CPU).images for part in Batch(parts_of(rows(), pair=True), torch.arange(11), None).split(size, share=11)
    ]
    view_a, view_b = (torch.cat(views) for views in zip(*found, strict=True))
    assert torch.equal(view_a, rows())
    assert torch.equal(view_b, rows() + 100)


def test_rows_on_the_host_are_not_copied():
    images = rows()
    part = HostCuts([images[:4], images[4:]])[slice(2, 6)].parts
    assert [tensor.data_ptr() for tensor in part] == [images[2:].data_ptr(), images[4:].data_ptr()]


def test_a_batch_that_is_moved_still_says_what_was_skipped():
    assert Batch(rows(), torch.arange(11), None, ("a.png",)).to(CPU).skipped == ("a.png",)


@pytest.mark.parametrize("readable", [4, 7, 10])
def test_a_batch_with_unreadable_images_has_as_many_parts_as_a_whole_one(readable):
    parts = Batch(rows(readable), torch.arange(readable), None).split(3, share=11)
    assert len(parts) == 4
    assert max(len(part.keys) for part in parts) - min(len(part.keys) for part in parts) <= 1
    assert torch.equal(torch.cat([part.keys for part in parts]), torch.arange(readable))


@pytest.mark.parametrize(("size", "sizes"), [(5, [3, 4, 4]), (10, [5, 6]), (11, [11]), (2, [1, 2, 2, 2, 2, 2])])
def test_even_parts_are_as_many_as_uneven_ones_and_differ_by_one_image_at_most(size, sizes):
    batch = Batch(rows(), torch.arange(11), torch.arange(11))
    parts = batch.split(size, share=11, evenly=True)
    assert [len(part.keys) for part in parts] == sizes
    assert len(batch.split(size, share=11)) == len(sizes)
    assert torch.equal(torch.cat([part.labels for part in parts]), torch.arange(11))


def test_a_batch_with_fewer_images_than_parts_is_refused():
    message = r"^a batch must have an image for each of 4 parts, 3 of 11 can be read\.$"
    with pytest.raises(InputError, match=message):
        Batch(rows(3), torch.arange(3), None).split(3, share=11)
