"""What a launcher's environment makes of a process, and what of it is refused."""

import re

import pytest
import torch
from cl_train import InputError, describe, make_accelerator, use_all_cores
from cl_train import _launch as launch


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def announce(monkeypatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def unjoined(monkeypatch):
    """An Accelerator would wait for the other processes: a test that gets there shall fail, not hang."""

    def fail(**kwargs):
        raise AssertionError("an Accelerator was made")

    monkeypatch.setattr(launch, "Accelerator", fail)


# Processes


def test_without_a_launcher_there_is_one_process():
    accelerator = make_accelerator("no")
    assert (accelerator.num_processes, accelerator.process_index, accelerator.is_main_process) == (1, 0, True)


def test_a_world_of_one_needs_nothing_else(monkeypatch):
    announce(monkeypatch, WORLD_SIZE="1")
    assert make_accelerator("no").num_processes == 1


def test_without_an_accelerator_the_device_is_the_cpu():
    assert make_accelerator("no").device == torch.device("cpu")


def test_a_world_size_alone_is_refused(monkeypatch, unjoined):
    announce(monkeypatch, WORLD_SIZE="2")
    with refused(
        "WORLD_SIZE=2 is set but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not, so one process would run alone: "
        "start with torchrun or accelerate launch, or unset WORLD_SIZE."
    ):
        make_accelerator("no")


def test_the_missing_part_of_a_launchers_environment_is_named(monkeypatch, unjoined):
    announce(monkeypatch, WORLD_SIZE="3", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="29500")
    with pytest.raises(InputError, match=r"^WORLD_SIZE=3 is set but RANK is not, so one process would run alone"):
        make_accelerator("no")


@pytest.mark.parametrize("size", ["x", "", "0", "-1", "1.5"])
def test_a_world_size_that_is_no_number_of_processes_is_refused(monkeypatch, unjoined, size):
    announce(monkeypatch, WORLD_SIZE=size)
    with refused(f"WORLD_SIZE must be a number of processes, got {size!r}."):
        make_accelerator("no")


def test_a_process_that_is_alone_already_cannot_join_others(monkeypatch):
    make_accelerator("no")
    announce(monkeypatch, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="29500")
    with refused("WORLD_SIZE=2 is set but 1 processes take part."):
        make_accelerator("no")


# Precision


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_accelerator_has_the_precision_asked_for(precision):
    assert make_accelerator(precision).mixed_precision == precision


@pytest.mark.parametrize("precision", ["fp32", "", None, "BF16"])
def test_another_precision_is_refused(precision):
    with refused(f"`mixed_precision` must be 'auto', 'no', 'bf16' or 'fp16', got {precision!r}."):
        make_accelerator(precision)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu sse avx512f", "no"), ("fpu avx512_bf16", "bf16"), ("amx_bf16 amx_tile", "bf16"), ("", "no")],
)
def test_auto_is_bf16_on_a_cpu_that_has_the_instructions(monkeypatch, tmp_path, flags, precision):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch, "Path", lambda path: tmp_path / "cpuinfo")
    assert make_accelerator("auto").mixed_precision == precision


def test_auto_is_float32_where_the_cpu_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch, "Path", lambda path: tmp_path / "no cpuinfo")
    assert make_accelerator("auto").mixed_precision == "no"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "no"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_a_gpu_that_computes_it(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert launch._native_precision() == precision


def test_an_evaluation_may_follow_a_run_in_another_precision(monkeypatch):
    make_accelerator("no")  # as pretrain(mixed_precision="no") makes it; then linear_eval makes its own
    monkeypatch.setattr(launch, "_native_precision", lambda: "bf16")
    assert make_accelerator().mixed_precision == "no"


def test_a_second_precision_in_one_process_is_refused():
    make_accelerator("no")
    with refused("`mixed_precision` is 'no' in this process since its first use, got 'bf16'."):
        make_accelerator("bf16")


def test_fp16_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused("`mixed_precision` 'fp16' needs a CUDA device (its loss scaling does), take 'bf16' or 'no'."):
        make_accelerator("fp16")


def test_gradient_accumulation_of_accelerates_own_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(InputError, match=r"gradient accumulation is set to 4 steps .* must be 1"):
        make_accelerator("no")


# Threads


@pytest.mark.parametrize(("cores", "local", "each"), [(8, None, 8), (8, "2", 4), (8, "3", 2), (2, "4", 1)])
def test_cores_are_shared_out_among_the_processes_of_the_machine(monkeypatch, cores, local, each):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(cores)))
    if local is not None:
        announce(monkeypatch, LOCAL_WORLD_SIZE=local)
    assert launch.cores_per_process() == each


def test_without_an_accelerator_torch_uses_all_cores_of_the_process(monkeypatch, threads):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(6)))
    announce(monkeypatch, LOCAL_WORLD_SIZE="2")
    use_all_cores()
    assert torch.get_num_threads() == 3


def test_with_an_accelerator_the_threads_stay_as_the_launcher_set_them(monkeypatch, threads):
    torch.set_num_threads(1)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    use_all_cores()
    assert torch.get_num_threads() == 1


def test_describe_is_one_line_of_processes_device_precision_and_threads(threads):
    torch.set_num_threads(1)
    assert describe(make_accelerator("no")) == "world=1 backend=none device=cpu precision=no threads=1"
