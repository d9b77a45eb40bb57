"""How the tests here run an example: in this process, by its words, in a folder of its own."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from cl_train import run_script

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_example(monkeypatch, tmp_path) -> Iterator[Callable[[str], Callable[..., int]]]:
    """Given an example's name, what runs it with the given words and returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    threads, known = torch.get_num_threads(), set(sys.modules)

    def load(name: str) -> Callable[..., int]:
        module = importlib.import_module(name)

        def run(*words: object) -> int:
            AcceleratorState._reset_state(reset_partial_state=True)
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
            with pytest.raises(SystemExit) as end:
                run_script(module.main)
            return end.value.code

        return run

    yield load
    for name in {path.stem for path in EXAMPLES.glob("*.py")} - known:
        sys.modules.pop(name, None)  # with what a test put into it
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
