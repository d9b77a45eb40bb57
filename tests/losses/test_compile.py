"""What all losses have in common: under torch.compile and autocast they are what they are without, and as modules."""

import inspect
from collections.abc import Callable

import pytest
import torch
from cl_losses import (
    BYOLLoss,
    CrossDomainLoss,
    DistillationLoss,
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    byol_loss,
    cross_domain_loss,
    distillation_loss,
    info_nce_loss,
    nt_xent_loss,
    sup_con_loss,
)
from torch import Tensor, nn
from torch.testing import assert_close

Loss = Callable[[Tensor, Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NEGATIVES = normal(7, 4, seed=2)
LABELS, DOMAINS = torch.tensor([0, 1, 0, -1, 1]), torch.tensor([0, 0, 1, 1, 1])


def stacked(loss: Callable[..., Tensor], *labels: Tensor, **arguments) -> Loss:
    """Of two views (2, n, d), for images 0 to n - 1, which are labelled in turn."""

    def call(a: Tensor, b: Tensor) -> Tensor:
        at = torch.arange(a.shape[0]) % 5
        return loss(torch.stack([a, b]), *(numbers[at] for numbers in labels), **arguments)

    return call


def learnt_temperature(a: Tensor, b: Tensor) -> Tensor:
    return info_nce_loss(a, b, temperature=b.square().mean(), symmetric=True)


# Every loss, as one of two tensors (n, 4)
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda a, b: nt_xent_loss(a, b, temperature=0.2),
    "nt_xent_decoupled": lambda a, b: nt_xent_loss(a, b, temperature=0.02, decoupled=True, reduction="sum"),
    "nt_xent_none": lambda a, b: nt_xent_loss(a, b, temperature=0.001, reduction="none"),
    "info_nce": lambda a, b: info_nce_loss(a, b, temperature=0.2),
    "info_nce_negatives": lambda a, b: info_nce_loss(a, b.detach(), temperature=0.02, negatives=NEGATIVES),
    "info_nce_symmetric": lambda a, b: info_nce_loss(a, b, temperature=0.2, symmetric=True, reduction="none"),
    "info_nce_learnt": learnt_temperature,
    "sup_con": stacked(sup_con_loss, LABELS, temperature=0.2),
    "sup_con_none": stacked(sup_con_loss, LABELS, temperature=0.02, reduction="none"),
    "cross_domain": stacked(cross_domain_loss, LABELS, DOMAINS, temperature=0.2),
    "cross_domain_positive": stacked(
        cross_domain_loss, LABELS, DOMAINS, temperature=0.2, same_domain="positive", reduction="none"
    ),
    "cross_domain_own": stacked(cross_domain_loss, LABELS, DOMAINS, temperature=0.2, unlabelled="own_domain"),
    "cross_domain_own_positive": stacked(
        cross_domain_loss,
        LABELS,
        DOMAINS,
        temperature=0.001,
        same_domain="positive",
        unlabelled="own_domain",
        reduction="none",
    ),
    "byol": byol_loss,
    "distillation": lambda a, b: distillation_loss(a, b, temperature=0.5),
}
OWN = ["cross_domain_own", "cross_domain_own_positive"]  # with groups of four kinds, and of three without cells
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def step(loss: Loss) -> Loss:
    """A layer before the loss and weights behind it, so that the loss is in the middle of a graph."""

    def call(a: Tensor, b: Tensor) -> Tensor:
        losses = loss(torch.tanh(a) + a, b)
        return (losses * torch.arange(1, 1 + losses.numel()).view(losses.shape)).sum()

    return call


def value_and_gradients(loss: Loss, n: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    a, b = (normal(n, 4, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
    value = loss(a, b)
    return [value.detach(), *torch.autograd.grad(value, (a, b), allow_unused=True)]


# The compiler


@pytest.fixture(autouse=True)
def forget_what_is_compiled():
    yield
    torch._dynamo.reset()


@every_loss
def test_compiled_in_one_graph_is_what_it_is_without(loss):
    compiled = torch.compile(step(loss), backend="aot_eager", fullgraph=True)
    assert_close(value_and_gradients(compiled), value_and_gradients(step(loss)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce_symmetric", "sup_con", "cross_domain", "cross_domain_own"])
def test_compiled_for_any_number_of_images_is_what_it_is_without(name):
    loss = step(LOSSES[name])
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in range(13, 2, -1):  # more than the compiler would compile anew
        assert_close(value_and_gradients(compiled, n), value_and_gradients(loss, n), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "sup_con", "cross_domain"])
def test_compiled_of_half_precision_is_what_it_is_without(name):
    loss = step(LOSSES[name])
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = value_and_gradients(loss, dtype=torch.bfloat16)
    assert_close(value_and_gradients(compiled, dtype=torch.bfloat16), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "sup_con", "cross_domain", *OWN])
def test_compiled_operator_describes_what_it_returns(name, monkeypatch):
    # torch's own checks: shapes, dtypes and strides of the fake, and that nothing is changed or passed through.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # take the operator, not the direct function
    a, b = (normal(5, 4, seed=seed).requires_grad_() for seed in (0, 1))
    calls = []
    operator = "cross" if name == "info_nce" else "self"
    overload = getattr(torch.ops.cl_losses, f"{operator}_contrast").default
    with Recorded(overload, calls):
        LOSSES[name](a, b)
    (arguments,) = calls
    torch.library.opcheck(
        overload, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the arguments of an operator's calls."""

    def __init__(self, overload: object, calls: list[tuple[object, ...]]) -> None:
        super().__init__()
        self.overload, self.calls = overload, calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self.overload:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


# Autocast


@every_loss
def test_inside_autocast_is_what_it_is_outside(loss):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(normal(5, 4), normal(5, 4, seed=1))
    assert_close(value, loss(normal(5, 4), normal(5, 4, seed=1)), rtol=0, atol=0)


@every_loss
def test_gradient_of_a_forward_inside_autocast_is_what_it_is_outside(loss):
    a, b = (normal(5, 4, seed=seed).requires_grad_() for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(a, b).sum()
    actual = torch.autograd.grad(value, (a, b), allow_unused=True)
    expected = torch.autograd.grad(loss(a, b).sum(), (a, b), allow_unused=True)
    assert_close(actual, expected, rtol=0, atol=0)


@every_loss
def test_gradient_of_a_backward_inside_autocast_is_what_it_is_outside(loss):
    a, b = (normal(5, 4, seed=seed).requires_grad_() for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.autograd.grad(loss(a, b).sum(), (a, b), allow_unused=True)
    expected = torch.autograd.grad(loss(a, b).sum(), (a, b), allow_unused=True)
    assert_close(actual, expected, rtol=0, atol=0)


# Modules

# Each with hyperparameters other than the defaults, and the function it is a form of
MODULES = [
    (NTXentLoss, nt_xent_loss, {"temperature": 0.3, "decoupled": True, "reduction": "sum", "gather": False}),
    (
        InfoNCELoss,
        info_nce_loss,
        {"temperature": 0.3, "symmetric": True, "decoupled": True, "reduction": "none", "gather": False},
    ),
    (SupConLoss, sup_con_loss, {"temperature": 0.3, "reduction": "none", "gather": False}),
    (
        CrossDomainLoss,
        cross_domain_loss,
        {
            "temperature": 0.3,
            "same_domain": "positive",
            "unlabelled": "own_domain",
            "reduction": "sum",
            "gather": False,
        },
    ),
    (BYOLLoss, byol_loss, {}),
    (DistillationLoss, distillation_loss, {"temperature": 0.3}),
]
every_module = pytest.mark.parametrize(
    ("module", "function", "arguments"), MODULES, ids=[m[0].__name__ for m in MODULES]
)


def batch(module: type[nn.Module]) -> tuple[Tensor, ...]:
    others = {SupConLoss: (LABELS,), CrossDomainLoss: (LABELS, DOMAINS)}
    return (normal(5, 4), *others.get(module, (normal(5, 4, seed=1),)))


def keywords(of: Callable[..., object]) -> dict[str, object]:
    """The arguments that are given by name, and their defaults."""
    parameters = inspect.signature(of).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@every_module
def test_module_prints_all_its_hyperparameters(module, function, arguments):
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    assert repr(module(**arguments)) == f"{module.__name__}({text})"
    assert set(arguments) == set(keywords(module)) - {"group"}


@every_module
def test_module_has_no_state(module, function, arguments):
    assert not module(**arguments).state_dict()


@every_module
def test_module_equals_the_function(module, function, arguments):
    z = batch(module)
    assert_close(module(**arguments)(*z), function(*z, **arguments), rtol=0, atol=0)


@every_module
def test_module_has_the_functions_defaults(module, function, arguments):
    of_function = keywords(function)
    of_function.pop("negatives", None)  # a tensor: given in the call
    assert keywords(module) == of_function


@pytest.mark.parametrize(("module", "function", "arguments"), MODULES[:4], ids=[m[0].__name__ for m in MODULES[:4]])
def test_module_hands_its_group_on(module, function, arguments, monkeypatch):
    seen = []
    monkeypatch.setitem(module.forward.__globals__, function.__name__, lambda *_, group, **__: seen.append(group))
    module(**arguments, group="a group")(*batch(module))
    assert seen == ["a group"]


def test_info_nce_module_takes_negatives():
    a, b = normal(5, 4), normal(5, 4, seed=1)
    expected = info_nce_loss(a, b, temperature=0.3, negatives=NEGATIVES)
    assert_close(InfoNCELoss(temperature=0.3)(a, b, NEGATIVES), expected, rtol=0, atol=0)
