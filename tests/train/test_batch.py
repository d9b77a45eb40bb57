"""Batches on the host: split and moved, they are the rows they were."""

import pytest
import torch
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
    whole = Batch(rows(), keys, None).split(size)
    found = Batch(parts_of(rows(), pair=False), keys, None).split(size)
    assert len(found) == len(whole)
    for part, expected in zip(found, whole, strict=True):
        assert torch.equal(part.to(CPU).images, expected.images)
        assert torch.equal(part.keys, expected.keys)


@pytest.mark.parametrize("size", [1, 3, 11])
def test_pairs_of_cuts_stay_together_when_they_are_split(size):
    found = [part.to(CPU).images for part in Batch(parts_of(rows(), pair=True), torch.arange(11), None).split(size)]
    view_a, view_b = (torch.cat(views) for views in zip(*found, strict=True))
    assert torch.equal(view_a, rows())
    assert torch.equal(view_b, rows() + 100)


def test_rows_on_the_host_are_not_copied():
    images = rows()
    part = HostCuts([images[:4], images[4:]])[slice(2, 6)].parts
    assert [tensor.data_ptr() for tensor in part] == [images[2:].data_ptr(), images[4:].data_ptr()]


def test_a_batch_that_is_moved_still_says_what_was_skipped():
    assert Batch(rows(), torch.arange(11), None, ("a.png",)).to(CPU).skipped == ("a.png",)
