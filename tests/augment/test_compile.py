"""Compiled views, what they cost, and that nothing in them waits for a GPU."""

import pickle

import pytest
import torch
from cl_augment import BYOLAugment, LinearEvalAugment, SimCLRAugment, TwoViews, sample_keys, uniform
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

# torch's own, of importing Inductor and of what it calls
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
AUGMENTS = {
    "SimCLR": lambda: SimCLRAugment(40),
    "SimCLR without blur": lambda: SimCLRAugment(16),
    "Sobel": lambda: SimCLRAugment(40, sobel=True),
    "finished": lambda: SimCLRAugment(
        40, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), dtype=torch.bfloat16, memory_format=torch.channels_last
    ),
    "BYOL": lambda: BYOLAugment(40),
    "linear eval": lambda: LinearEvalAugment(16),
}
EACH = pytest.mark.parametrize("augment", [make() for make in AUGMENTS.values()], ids=list(AUGMENTS))


def images(n: int = 6) -> Tensor:
    return torch.randint(0, 256, (n, 3, 48, 44), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 6) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# Compiled


@pytest.mark.parametrize("name", ["finished", "BYOL"])  # which have all stages but Sobel's between them
def test_the_whole_call_compiles_to_one_graph_of_the_same_views(name):
    augment = AUGMENTS[name]()
    compiled = torch.compile(augment, fullgraph=True, backend="aot_eager")
    tolerance = 0.02 if "bfloat16" in repr(augment.finish_with) else 1e-5
    assert_close(compiled(images(), some_keys()), augment(images(), some_keys()), rtol=0, atol=tolerance)


def test_views_of_compiled_chunks_are_those_of_the_others_wherever_an_image_is(monkeypatch):
    """By the real compiler, as `compile()` makes them: 1e-5 from the eager ones, bit-equal among themselves."""
    augment = SimCLRAugment(40)
    eager = augment(images(), some_keys())
    augment.compile()
    views = augment(images(), some_keys())
    assert_close(views, eager, rtol=0, atol=1e-5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = augment(images()[order], some_keys()[order])
    assert_close(permuted, tuple(view[order] for view in views), rtol=0, atol=0)
    monkeypatch.setattr("cl_augment._chain._CHUNK_BYTES", {"cpu": 2 * 4 * 3 * 48 * 44})  # chunks of 2
    assert_close(augment(images(), some_keys()), views, rtol=0, atol=0)
    parts = [augment(images()[part], some_keys()[part]) for part in (slice(0, 2), slice(2, 6))]
    assert_close(tuple(map(torch.cat, zip(*parts, strict=True))), views, rtol=0, atol=0)


def test_the_whole_call_compiles_with_the_draws_of_the_others():
    augment = LinearEvalAugment(16)
    compiled = torch.compile(augment, fullgraph=True)
    assert_close(compiled(images(), some_keys()), augment(images(), some_keys()), rtol=0, atol=1e-5)


def test_compile_hands_its_options_to_torch(monkeypatch):
    seen = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.update(options) or function)
    augment = SimCLRAugment(16)
    augment.compile(mode="max-autotune")
    augment(images(), some_keys())
    assert seen == {"fullgraph": True, "dynamic": False, "mode": "max-autotune"}


def test_numbers_of_images_are_compiled_by_powers_of_two():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    augment = LinearEvalAugment(8)
    augment.compile(backend=backend)
    for n in (5, 6, 8, 7, 3, 4):
        augment(images(n), some_keys(n))
    assert len(compiled) == 2


def test_augmentations_do_not_use_up_each_others_compilations():
    """The compiler gives up on a function after 8 times, which `fullgraph` makes an error."""
    for size in (8, 10, 12):
        augment = BYOLAugment(size)
        augment.compile(backend="eager")
        for n in (4, 8):
            augment(images(n), some_keys(n))


def test_lists_of_any_sizes_are_compiled_once():
    augment = SimCLRAugment(16)
    augment.compile(backend="eager")
    for side in range(20, 32):
        augment([torch.rand(3, side, 30), torch.rand(3, 24, side)], some_keys(2))


def test_a_compiled_augmentation_can_be_pickled():
    augment = SimCLRAugment(16)
    augment.compile(backend="eager")
    views = augment(images(), some_keys())
    assert_close(pickle.loads(pickle.dumps(augment))(images(), some_keys()), views, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 9, 38])
def test_draws_compile_to_the_same_numbers(count):
    assert torch.equal(torch.compile(uniform, fullgraph=True)(some_keys(), count), uniform(some_keys(), count))


def test_the_keys_compile_to_the_same_numbers():
    ids = torch.arange(50)
    expected = sample_keys(ids, seed=3, epoch=4)
    compiled = torch.compile(lambda ids: sample_keys(ids, seed=3, epoch=4), fullgraph=True)
    assert torch.equal(compiled(ids), expected)


# Cost


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@EACH
def test_the_number_of_operators_does_not_depend_on_that_of_images(augment):
    counts = []
    for n in (8, 16):
        with _Operators() as seen:
            augment(images(n), some_keys(n))
        counts.append(seen.count)
    assert counts[0] == counts[1]


# On a GPU, which is played by tensors without values: asking for one raises


@EACH
def test_no_view_waits_for_a_gpu(augment, monkeypatch):
    monkeypatch.setattr("cl_augment._chain.check_range", lambda images: None)  # which copies, and does not wait
    with FakeTensorMode():
        there = torch.empty(6, 3, 48, 44, dtype=torch.uint8, device="cuda")
        view = augment(there, torch.empty(6, dtype=torch.int64, device="cuda"))
    assert (view if isinstance(view, Tensor) else view[0]).device.type == "cuda"


def test_a_stage_that_waits_for_a_gpu_would_be_seen(monkeypatch):
    class Waits(torch.nn.Module):
        def forward(self, images: Tensor, keys: Tensor) -> Tensor:
            return images * images.max().item()

    monkeypatch.setattr("cl_augment._chain.check_range", lambda images: None)
    augment = TwoViews(*SimCLRAugment(16).stages()[0], Waits())
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        augment(torch.empty(6, 3, 48, 44, device="cuda"), torch.empty(6, dtype=torch.int64, device="cuda"))
