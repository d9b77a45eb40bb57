"""Worker processes: what goes wrong in one of them ends the run by name, and signals to all of them do not."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cl_train import ImageDataset, InputError
from cl_train._interrupt import SIGNALS
from cl_train._loader import batches
from torch.utils.data import _utils

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.timeout(60),
]
SCRIPT = Path(__file__).with_name("_reading.py")
BAD = 70  # of the second batch


@pytest.fixture(autouse=True)
def _a_process_without_other_loaders(monkeypatch):
    """As at the start of a run: torch has set no handler of dead children, and there are none."""
    monkeypatch.setattr(_utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)
    assert multiprocessing.active_children() == []


class Faulty(ImageDataset):
    """Images, of which one does something."""

    labels = classes = images = None

    def __init__(self, fault=lambda: None, *, images=160, seconds=0.0):
        self.fault, self.count, self.seconds = fault, images, seconds

    def __len__(self):
        return self.count

    def read(self, index):
        time.sleep(self.seconds)
        if index == BAD:
            self.fault()
        return torch.full((1, 2, 2), index, dtype=torch.uint8)

    def name(self, index):
        return f"number {index}"


def cut(image, key):
    return image


def source(dataset, *, workers=2, size=40, **options):
    ids = torch.arange(len(dataset)).split(size)
    shares = zip(ids, ids, strict=True)
    return batches(dataset, shares, cut=cut, workers=workers, device=torch.device("cpu"), **options)


def seen(batch) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


def failing(error: Exception):
    def fault():
        raise error

    return fault


# What ends a run


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (lambda: os._exit(3), "ended with code 3"),
        (lambda: os._exit(0), "ended with code 0"),
        (lambda: sys.exit(4), "ended with code 4"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL, as when memory runs out"),
    ],
)
def test_a_worker_that_dies_ends_the_run_with_the_image_it_read(fault, how):
    with pytest.raises(RuntimeError, match=rf"^worker process \d {how}, while it read number {BAD}\.$"):
        list(source(Faulty(fault)))


def test_a_worker_that_hangs_ends_the_run_with_the_image_it_read():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"^no image was read for 1 s, workers hang at: number {BAD}\.$"):
        list(source(Faulty(lambda: time.sleep(1000)), timeout=1))
    assert time.monotonic() - began < 20


def test_reading_slowly_is_not_hanging():
    found = list(source(Faulty(images=32, seconds=0.1), size=16, timeout=1))  # a piece takes 1.6 s
    assert [number for batch in found for number in seen(batch)] == list(range(32))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [KeyError("a mistake"), RuntimeError("a mistake"), OSError("a mistake")])
def test_a_mistake_keeps_its_traceback_and_is_told_with_the_image(workers, error):
    with pytest.raises(type(error)) as caught:
        list(source(Faulty(failing(error)), workers=workers))
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "a mistake" in text
    assert f"This was with number {BAD}." in text
    assert "in fault" in text or caught.traceback[-1].name == "fault"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_refused_in_one_line(workers):
    with pytest.raises(InputError, match=r"^number 70 is damaged\.$"):
        list(source(Faulty(failing(InputError("number 70 is damaged."))), workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_too_small_for_views_is_refused_by_name(workers):
    class Small(Faulty):
        def read(self, index):
            return super().read(index)[:, :1] if index == BAD else super().read(index)

    with pytest.raises(InputError, match=r"^number 70 must have at least 2 x 2 pixels, it has 1 x 2\.$"):
        list(source(Small(), workers=workers))


def test_a_dead_worker_interrupts_nothing_until_its_images_are_due():
    before = signal.getsignal(signal.SIGCHLD)
    found = source(Faulty(lambda: os._exit(3)), workers=1)
    next(found)
    time.sleep(0.5)  # a step, or a checkpoint being written, while the worker dies
    assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(RuntimeError, match="ended with code 3"):
        list(found)


# What does not


def test_workers_heed_no_signal_that_asks_a_run_to_stop():
    found = source(Faulty(seconds=0.005))
    numbers = seen(next(found))
    for worker in multiprocessing.active_children():
        for number in SIGNALS:
            os.kill(worker.pid, number)
    numbers += [number for batch in found for number in seen(batch)]
    assert numbers == list(range(160))


def test_workers_end_when_the_batches_are_closed():
    found = source(Faulty())
    next(found)
    assert len(multiprocessing.active_children()) == 2
    found.close()
    assert multiprocessing.active_children() == []


def test_a_worker_that_hangs_ends_when_the_batches_are_closed(monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds that torch waits for it, twice
    found = source(Faulty(lambda: time.sleep(1000)))
    next(found)
    found.close()
    assert multiprocessing.active_children() == []


def test_workers_end_when_nobody_holds_the_batches():
    found = source(Faulty())
    next(found)
    del found
    assert multiprocessing.active_children() == []


def test_reading_draws_no_global_random_number():
    before = torch.get_rng_state()
    list(source(Faulty()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_whose_whole_group_is_interrupted_saves_and_ends(tmp_path):
    """As by Ctrl-C. The script also holds other batches that are never closed, whose workers must end as well."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            workers = run.stdout.readline().split()  # written in the third step
            os.killpg(run.pid, signal.SIGINT)
            errors = run.communicate(timeout=40)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    assert len(workers) == 4
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert re.fullmatch(r"step-0*[3-5]", max(path.name for path in (tmp_path / "checkpoints").iterdir()))
