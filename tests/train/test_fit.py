"""`chunk_size="auto"`: as many images as fit, on this machine or on one that is made up here."""

import pytest
import torch
from cl_augment import SimCLRAugment
from cl_losses import NTXentLoss
from cl_train import ArrayDataset, FolderDataset, InputError, SimCLR, make_accelerator, pretrain
from cl_train import _fit as fit
from cl_train._fit import fitting_chunk
from cl_train._plan import Plan
from measure import peak_bytes
from PIL import Image
from torch import nn

SIZE, BATCH = 16, 256


class Net(nn.Module):
    """Convolutions without BatchNorm: what a step keeps grows with the images."""

    feature_dim = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(c, 16, 3), nn.ReLU()) for c in (3, 16, 16)))

    def forward(self, images):
        return self.layers(images).mean((2, 3))


def simclr() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Net(), nn.Linear(16, 8), SimCLRAugment(SIZE, blur=False), NTXentLoss(temperature=0.5))


def data(n=BATCH) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    return ArrayDataset(torch.randint(256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator))


def chunk(free: int, monkeypatch, *, dataset=None, skip_unreadable=False) -> int:
    """What fits into so many bytes."""
    monkeypatch.setattr(fit, "_free", lambda device: free)
    dataset = data() if dataset is None else dataset
    plan = Plan(dataset, len(dataset), 1, 0, 0, 1)
    return fitting_chunk(simclr(), plan, make_accelerator("no"), skip_unreadable=skip_unreadable)


def seen_peak(images: int) -> int:
    """Bytes of a forward and backward of so many images, measured by another hand."""
    method, views = simclr().to(memory_format=torch.channels_last), torch.rand(2 * images, 3, SIZE, SIZE)

    def step():
        embeddings = method(views.contiguous(memory_format=torch.channels_last))
        (embeddings.z_a.sum() + embeddings.z_b.sum()).backward()

    return peak_bytes(step)


@pytest.mark.parametrize("megabytes", [8, 16])
def test_a_chunk_fits_into_three_quarters_of_the_free_memory_and_fills_half(megabytes, monkeypatch):
    found = chunk(megabytes * 2**20, monkeypatch)
    assert 8 < found < BATCH
    assert 0.5 * megabytes * 2**20 < seen_peak(found) < 0.8 * megabytes * 2**20


def test_a_chunk_is_at_most_the_share_of_a_process(monkeypatch):
    assert chunk(2**40, monkeypatch) == BATCH


def test_it_says_that_not_even_one_image_fits(monkeypatch):
    with pytest.raises(InputError, match=r"^`chunk_size` must be at least 1, but one image needs 0 MB and"):
        chunk(2**10, monkeypatch)


def test_a_trial_leaves_weights_gradients_and_random_numbers_as_they_are(monkeypatch):
    monkeypatch.setattr(fit, "_free", lambda device: 2**24)
    method, accelerator = simclr(), make_accelerator("no")
    before = [p.clone() for p in method.parameters()]
    state = torch.random.get_rng_state()
    fitting_chunk(method, Plan(data(), BATCH, 1, 0, 0, 1), accelerator, skip_unreadable=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(method.parameters(), before, strict=True))


def test_images_that_cannot_be_read_are_no_trial_where_they_may_be_left_out(tmp_path, monkeypatch):
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    dataset = FolderDataset(tmp_path, labelled=False, verify=False)
    with pytest.raises(InputError, match=r"0\.png cannot be decoded"):
        chunk(2**40, monkeypatch, dataset=dataset)
    assert chunk(2**40, monkeypatch, dataset=dataset, skip_unreadable=True) == 4


def test_a_run_that_goes_on_keeps_the_chunk_it_was_begun_with(tmp_path, monkeypatch):
    settings = {"epochs": 2, "batch_size": BATCH, "chunk_size": "auto", "out": tmp_path, "progress": False}
    monkeypatch.setattr(fit, "_free", lambda device: 12 * 2**20)
    method = simclr()
    pretrain(method, data(), max_steps=1, **settings)
    monkeypatch.setattr(fit, "_free", lambda device: 2**40)
    assert pretrain(method, data(), **settings).steps == 2
