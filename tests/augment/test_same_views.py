"""An image and its key have the same two views, bit for bit, wherever and with whatever they are augmented."""

import hashlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from cl_augment import BYOLAugment, SimCLRAugment, TwoViewAugment, sample_keys
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

# what makes the augmentation, and the shape of the images
CASES: dict[str, tuple[Callable[[], TwoViewAugment], tuple[int, int, int, int]]] = {
    "SimCLR at 32 px": (lambda: SimCLRAugment(32), (8, 3, 40, 44)),
    "SimCLR at 64 px": (lambda: SimCLRAugment(64, blur=True), (8, 3, 80, 72)),
    "BYOL at 40 px": (lambda: BYOLAugment(40), (8, 3, 48, 52)),
    "SimCLR at 224 px": (lambda: SimCLRAugment(224), (4, 3, 256, 256)),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def images(case: str) -> Tensor:
    return torch.randint(0, 256, CASES[case][1], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def some_keys(case: str) -> Tensor:
    return sample_keys(torch.arange(CASES[case][1][0]), seed=0, epoch=0)


def augmentation(case: str) -> TwoViewAugment:
    return CASES[case][0]()


def views(case: str) -> tuple[Tensor, Tensor]:
    """Of all images at once."""
    return augmentation(case)(images(case), some_keys(case))


def digest(case: str) -> str:
    return hashlib.sha256(torch.cat(views(case)).numpy().tobytes()).hexdigest()


def assert_bit_equal(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    view_a, view_b = (torch.cat(part) for part in zip(*parts, strict=True))
    return view_a, view_b


@pytest.fixture
def chunk_length(monkeypatch) -> Callable[[int], None]:
    """Sets how many images are worked on at a time within a call."""

    def set_length(length: int) -> None:
        def chunks(source: torch.Size, *_: object) -> list[slice]:
            return [slice(start, min(start + length, source[0])) for start in range(0, source[0], length)]

        monkeypatch.setattr("cl_augment._chain.chunks", chunks)

    return set_length


@EVERY_CASE
def test_views_are_the_same_in_another_order(case):
    order = torch.randperm(len(images(case)), generator=torch.Generator().manual_seed(1))
    actual = augmentation(case)(images(case)[order], some_keys(case)[order])
    assert_bit_equal(actual, tuple(view[order] for view in views(case)))


@EVERY_CASE
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_views_are_the_same_in_smaller_batches(case, parts):
    batches = zip(images(case).tensor_split(parts), some_keys(case).tensor_split(parts), strict=True)
    assert_bit_equal(joined([augmentation(case)(*batch) for batch in batches]), views(case))


@EVERY_CASE
@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_views_are_the_same_however_many_images_are_worked_on_at_a_time(case, length, chunk_length):
    expected = views(case)
    chunk_length(length)
    assert_bit_equal(views(case), expected)


@pytest.mark.parametrize("case", ["SimCLR at 64 px", "SimCLR at 224 px"])
def test_views_are_the_same_on_one_thread(case):
    expected, threads = views(case), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        actual = views(case)
    finally:
        torch.set_num_threads(threads)
    assert_bit_equal(actual, expected)


@EVERY_CASE
def test_views_are_the_same_among_other_images(case):
    bright = torch.full_like(images(case), 255)
    mixed = torch.stack([images(case), bright], dim=1).flatten(0, 1)
    keys = torch.stack([some_keys(case), some_keys(case) + 1], dim=1).flatten()
    assert_bit_equal(tuple(view[::2] for view in augmentation(case)(mixed, keys)), views(case))


def test_views_are_the_same_beside_larger_images_of_a_list(chunk_length):
    sizes = [(40, 44), (90, 30), (33, 120), (64, 64), (12, 9)]
    pick = torch.Generator().manual_seed(0)
    batch = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=pick) for size in sizes]
    keys, augment = sample_keys(torch.arange(5), seed=0, epoch=0), SimCLRAugment(32, blur=True)
    expected = joined([augment(image[None], keys[i : i + 1]) for i, image in enumerate(batch)])
    assert_bit_equal(augment(batch, keys), expected)
    chunk_length(2)
    assert_bit_equal(augment(batch, keys), expected)


class _Images(Dataset):
    """(image, key) pairs, or views made of each when it is read."""

    def __init__(self, case: str, *, augment_here: bool) -> None:
        self.images, self.keys = images(case), some_keys(case)
        self.augment = augmentation(case) if augment_here else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.augment is None:
            return self.images[i], self.keys[i]
        view_a, view_b = self.augment(self.images[i : i + 1], self.keys[i : i + 1])
        return view_a[0], view_b[0]


class _Collate:
    def __init__(self, case: str) -> None:
        self.augment = augmentation(case)

    def __call__(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return self.augment(*default_collate(items))


@pytest.mark.parametrize("case", ["SimCLR at 64 px", "SimCLR at 224 px"])
@pytest.mark.parametrize("where", ["dataset", "collate"])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_same_in_the_workers_of_a_loader(case, where, workers):
    dataset = _Images(case, augment_here=where == "dataset")
    collate = _Collate(case) if where == "collate" else None
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=collate)
    assert_bit_equal(joined([tuple(batch) for batch in loader]), views(case))


def test_views_are_the_same_after_a_restart():
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == [digest(case) for case in CASES]


if __name__ == "__main__":
    for name in CASES:
        print(digest(name))
