"""Every error of every public function: its type and its words."""

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from cl_losses import (
    BYOLLoss,
    CrossDomainLoss,
    DistillationLoss,
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    _deferred,
    byol_loss,
    contrastive_metrics,
    count_positives,
    cross_domain_loss,
    distillation_loss,
    info_nce_loss,
    nt_xent_loss,
    sup_con_loss,
)
from torch import Tensor

LABELS, DOMAINS = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])


def raises(error: type[Exception], message: str) -> AbstractContextManager[object]:
    """The whole message."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def rows(n: int = 3, d: int = 4, **arguments) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(**arguments)


def with_row(row: int, value: float) -> Tensor:
    """Rows with a number in one of them."""
    z = rows(5)
    z[row, 2] = value
    return z


# Every function of two tensors of one shape, and how its arguments are called
PAIRS = {
    "nt_xent": (nt_xent_loss, {"temperature": 0.1}, "`z_a` and `z_b`"),
    "info_nce": (info_nce_loss, {"temperature": 0.1}, "`query` and `key`"),
    "byol": (byol_loss, {}, "`prediction` and `target`"),
    "distillation": (distillation_loss, {"temperature": 0.1}, "`student_logits` and `teacher_logits`"),
    "metrics": (contrastive_metrics, {"temperature": 0.1}, "`z_a` and `z_b`"),
}
# Every function of labelled rows
LABELLED = {
    "sup_con": lambda z, labels=LABELS, **arguments: sup_con_loss(z, labels, **{"temperature": 0.1} | arguments),
    "cross_domain": lambda z, labels=LABELS, domains=DOMAINS, **arguments: cross_domain_loss(
        z, labels, domains, **{"temperature": 0.1} | arguments
    ),
}
# Every function with a temperature
TEMPERATE = {
    "nt_xent": lambda temperature: nt_xent_loss(rows(), rows(), temperature=temperature),
    "info_nce": lambda temperature: info_nce_loss(rows(), rows(), temperature=temperature),
    "info_nce_learnt": lambda temperature: info_nce_loss(rows(), rows(), temperature=torch.tensor(float(temperature))),
    "distillation": lambda temperature: distillation_loss(rows(), rows(), temperature=temperature),
    "metrics": lambda temperature: contrastive_metrics(rows(), rows(), temperature=temperature),
    "sup_con": lambda temperature: sup_con_loss(rows(), LABELS, temperature=temperature),
    "cross_domain": lambda temperature: cross_domain_loss(rows(), LABELS, DOMAINS, temperature=temperature),
}
MODULES = [NTXentLoss, InfoNCELoss, SupConLoss, CrossDomainLoss]
# Every loss that takes a reduction
REDUCED: dict[str, Callable[..., Tensor]] = {
    "nt_xent": lambda z, **arguments: nt_xent_loss(z, rows(), **{"temperature": 0.1} | arguments),
    "info_nce": lambda z, **arguments: info_nce_loss(z, rows(), **{"temperature": 0.1} | arguments),
    **LABELLED,
}

pair = pytest.mark.parametrize(("loss", "arguments", "names"), PAIRS.values(), ids=PAIRS)
labelled = pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED)
reduced = pytest.mark.parametrize("loss", REDUCED.values(), ids=REDUCED)
positive = pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan, -math.inf])


# Arguments that are no tensors


@pytest.mark.parametrize("place", [0, 1])
@pair
def test_a_pair_with_something_else_than_a_tensor_is_refused(loss, arguments, names, place):
    name = names.split(" and ")[place]
    both = [rows(), rows()]
    both[place] = None
    with raises(TypeError, f"{name} must be a tensor, got NoneType."):
        loss(*both, **arguments)


def test_negatives_that_are_no_tensor_are_refused():
    with raises(TypeError, "`negatives` must be a tensor, got list."):
        info_nce_loss(rows(), rows(), temperature=0.1, negatives=[])


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("sup_con", "z"),
        ("sup_con", "labels"),
        ("cross_domain", "z"),
        ("cross_domain", "labels"),
        ("cross_domain", "domains"),
    ],
)
def test_labelled_rows_with_something_else_than_a_tensor_are_refused(loss, name):
    with raises(TypeError, f"`{name}` must be a tensor, got list."):
        LABELLED[loss](**{"z": rows(), name: [0, 0, 1]})


def test_count_positives_refuses_something_else_than_tensors():
    with raises(TypeError, "`labels` must be a tensor, got list."):
        count_positives([0, 0, 1])
    with raises(TypeError, "`domains` must be a tensor, got list."):
        count_positives(LABELS, [0, 1, 0])


# Shapes, dtypes and devices of two tensors


@pytest.mark.parametrize(("a", "b"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((3,), (3,)), ((), ()), ((2, 3, 4),) * 2])
@pair
def test_a_pair_of_other_shapes_is_refused(loss, arguments, names, a, b):
    columns = "classes" if loss is distillation_loss else "d"
    with raises(ValueError, f"{names} must have one shape (n, {columns}), got {a} and {b}."):
        loss(torch.ones(a), torch.ones(b), **arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
@pair
def test_a_pair_that_is_not_of_floating_point_numbers_is_refused(loss, arguments, names, dtype):
    with raises(TypeError, f"{names} must hold floating point numbers, got torch.float32, {dtype}."):
        loss(rows(), rows().to(dtype), **arguments)
    with raises(TypeError, f"{names} must hold floating point numbers, got {dtype}, torch.float32."):
        loss(rows().to(dtype), rows(), **arguments)


@pair
def test_a_pair_on_two_devices_is_refused(loss, arguments, names):
    with raises(ValueError, f"{names} must be on one device, got cpu, meta."):
        loss(rows(), rows(device="meta"), **arguments)


# Too few rows


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("name", ["nt_xent", "metrics"])
def test_two_views_of_fewer_than_2_images_are_refused(name, n):
    loss, arguments, names = PAIRS[name]
    with raises(ValueError, f"{names} must hold at least 2 images in all (negatives), got {n}."):
        loss(rows(n), rows(n), **arguments)


@pytest.mark.parametrize("n", [0, 1])
def test_info_nce_of_a_query_without_other_candidates_is_refused(n):
    with raises(ValueError, f"`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got {n}."):
        info_nce_loss(rows(n), rows(n), temperature=0.1)


def test_info_nce_of_no_query_is_refused_with_negatives_as_well():
    with raises(ValueError, "`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got 0."):
        info_nce_loss(rows(0), rows(0), temperature=0.1, negatives=rows(5))


def test_symmetric_info_nce_of_a_key_without_other_candidates_is_refused():
    with raises(ValueError, "`query` and `key` must hold at least 2 rows in all, or 1 with `negatives`, got 1."):
        info_nce_loss(rows(1), rows(1), temperature=0.1, negatives=rows(5), symmetric=True)


def test_byol_of_no_row_is_refused():
    with raises(ValueError, "`prediction` and `target` must hold at least 1 row, got 0."):
        byol_loss(rows(0), rows(0))


def test_distillation_of_no_row_is_refused():
    with raises(ValueError, "`student_logits` and `teacher_logits` must hold at least 1 row, got none."):
        distillation_loss(rows(0), rows(0), temperature=0.1)


@pair
def test_a_pair_of_no_columns_is_refused(loss, arguments, names):
    columns = "classes" if loss is distillation_loss else "d"
    with raises(ValueError, f"{names} must have one shape (n, {columns}), got (3, 0) and (3, 0)."):
        loss(rows(3, 0), rows(3, 0), **arguments)


@labelled
def test_rows_of_no_columns_are_refused(loss):
    with raises(ValueError, "`z` must have shape (n, d) or (views, n, d) with a view or more, got (4, 0)."):
        loss(rows(4, 0), temperature=0.1)


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("name", ["nt_xent", "distillation", "metrics", "sup_con", "cross_domain"])
def test_a_temperature_that_is_a_tensor_is_refused_where_it_would_get_no_gradient(name, shape):
    with raises(TypeError, "`temperature` must be a number, got a tensor; only `info_nce_loss` has a gradient for it."):
        TEMPERATE[name](torch.full(shape, 0.1, requires_grad=True))


@pytest.mark.parametrize("shape", [(1, 4), (3, 1, 4)])
@pytest.mark.parametrize("labels", [0, -1])
def test_sup_con_of_fewer_than_2_images_is_refused(labels, shape):
    with raises(ValueError, "`z` must hold at least 2 images in all (negatives), got 1."):
        sup_con_loss(torch.ones(shape), torch.tensor([labels]), temperature=0.1)


@pytest.mark.parametrize("n", [0, 1])
def test_cross_domain_of_fewer_than_2_images_is_refused(n):
    with raises(ValueError, f"`z` must hold at least 2 images in all (negatives), got {n}."):
        cross_domain_loss(rows(n), LABELS[:n], DOMAINS[:n], temperature=0.1)


# Temperatures


@positive
@pytest.mark.parametrize("loss", TEMPERATE.values(), ids=TEMPERATE)
def test_a_temperature_that_is_not_positive_is_refused(loss, temperature):
    with raises(ValueError, f"`temperature` must be positive, got {temperature}."):
        loss(temperature)


@positive
@pytest.mark.parametrize("module", [*MODULES, DistillationLoss])
def test_a_module_refuses_a_temperature_that_is_not_positive_at_once(module, temperature):
    with raises(ValueError, f"`temperature` must be positive, got {temperature}."):
        module(temperature=temperature)


@pytest.mark.parametrize("module", [*MODULES, DistillationLoss])
def test_a_module_asks_for_its_temperature(module):
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'temperature'"):
        module()


@pytest.mark.parametrize(
    ("temperature", "got"),
    [
        (torch.ones(2), "shape (2,) and torch.float32"),
        (torch.ones(0), "shape (0,) and torch.float32"),
        (torch.ones((), dtype=torch.int64), "shape () and torch.int64"),
    ],
)
def test_info_nce_refuses_a_temperature_that_is_a_tensor_but_no_number(temperature, got):
    with raises(ValueError, f"`temperature` must be a number or a floating point tensor of one, got {got}."):
        info_nce_loss(rows(), rows(), temperature=temperature)


# Choices


@reduced
def test_an_unknown_reduction_is_refused(loss):
    with raises(ValueError, "`reduction` must be 'mean', 'sum' or 'none', got 'median'."):
        loss(rows(), reduction="median")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_refuses_an_unknown_reduction_at_once(module):
    with raises(ValueError, "`reduction` must be 'mean', 'sum' or 'none', got None."):
        module(temperature=0.1, reduction=None)


@pytest.mark.parametrize(
    "call",
    [
        lambda choice: cross_domain_loss(rows(), LABELS, DOMAINS, temperature=0.1, same_domain=choice),
        lambda choice: CrossDomainLoss(temperature=0.1, same_domain=choice),
        lambda choice: count_positives(LABELS, DOMAINS, same_domain=choice),
    ],
    ids=["function", "module", "count"],
)
def test_an_unknown_choice_for_the_same_domain_is_refused(call):
    with raises(ValueError, "`same_domain` must be 'ignore' or 'positive', got 'negative'."):
        call("negative")


@pytest.mark.parametrize(
    "call",
    [
        lambda choice: cross_domain_loss(rows(), LABELS, DOMAINS, temperature=0.1, unlabelled=choice),
        lambda choice: CrossDomainLoss(temperature=0.1, unlabelled=choice),
    ],
    ids=["function", "module"],
)
@pytest.mark.parametrize("choice", ["own", None])
def test_an_unknown_choice_for_images_without_label_is_refused(choice, call):
    with raises(ValueError, f"`unlabelled` must be 'everywhere' or 'own_domain', got {choice!r}."):
        call(choice)


@pytest.mark.parametrize("views", [0, -1])
def test_count_positives_refuses_fewer_than_1_view(views):
    with raises(ValueError, f"`views` must be at least 1, got {views}."):
        count_positives(LABELS, views=views)


# Numbers that are not finite


BAD = [math.nan, math.inf, -math.inf, 1e30]  # the square of the last one is too large for float32


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "metrics"])
def test_a_row_that_is_not_finite_is_named(name, value):
    loss, arguments, names = PAIRS[name]
    name = {"nt_xent": names, "info_nce": "`query`", "metrics": "`z_a`"}[name]
    with raises(ValueError, f"{name} must be finite, and so must the norms of their rows; row 3 is not."):
        loss(with_row(3, value), rows(5), **arguments)


@pytest.mark.parametrize(
    ("name", "says"), [("nt_xent", "`z_a` and `z_b`; row 8"), ("info_nce", "`key`; row 3"), ("metrics", "`z_b`; row 3")]
)
def test_a_row_of_the_second_tensor_that_is_not_finite_is_named(name, says):
    loss, arguments, _ = PAIRS[name]
    of, row = says.split("; ")  # the rows of NT-Xent are numbered first views first
    with raises(ValueError, f"{of} must be finite, and so must the norms of their rows; {row} is not."):
        loss(rows(5), with_row(3, math.nan), **arguments)


def test_a_row_of_the_negatives_that_is_not_finite_is_named():
    with raises(ValueError, "`negatives` must be finite, and so must the norms of their rows; row 4 is not."):
        info_nce_loss(rows(), rows(), temperature=0.1, negatives=with_row(4, math.nan))


@pytest.mark.parametrize("value", BAD)
@labelled
def test_a_labelled_row_that_is_not_finite_is_named_first_views_first(loss, value):
    z = torch.ones(2, 3, 4)
    z[1, 2, 0] = value
    with raises(ValueError, "`z` must be finite, and so must the norms of their rows; row 5 is not."):
        loss(z)


def test_the_first_of_several_rows_that_are_not_finite_is_named():
    z = with_row(1, math.nan)
    z[3] = math.inf
    with raises(ValueError, "`z_a` and `z_b` must be finite, and so must the norms of their rows; row 1 is not."):
        nt_xent_loss(z, rows(5), temperature=0.1)


# Labels and domains


@pytest.mark.parametrize("shape", [(), (4,), (0, 3, 4), (2, 2, 3, 4)])
@labelled
def test_labelled_rows_of_another_shape_are_refused(loss, shape):
    with raises(ValueError, f"`z` must have shape (n, d) or (views, n, d) with a view or more, got {shape}."):
        loss(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@labelled
def test_labelled_rows_that_are_not_of_floating_point_numbers_are_refused(loss, dtype):
    with raises(TypeError, f"`z` must hold floating point numbers, got {dtype}."):
        loss(rows().to(dtype))


@pytest.mark.parametrize("shape", [(2,), (6,), (3, 1), ()])
@pytest.mark.parametrize("views", [None, 2])
@labelled
def test_labels_of_another_shape_are_refused(loss, views, shape):
    z = rows() if views is None else torch.ones(views, 3, 4)
    with raises(ValueError, f"`labels` must have shape (3,), one for each image, got {shape}."):
        loss(z, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@labelled
def test_labels_that_are_not_integers_are_refused(loss, dtype):
    with raises(TypeError, f"`labels` must hold integers, got {dtype}."):
        loss(rows(), LABELS.to(dtype))


@labelled
def test_labels_on_another_device_are_refused(loss):
    with raises(ValueError, "`labels` must be on the same device as the rest, cpu, got meta."):
        loss(rows(), LABELS.to("meta"))


@pytest.mark.parametrize("label", [-2, -100, -(10**12)])
@labelled
def test_labels_below_minus_1_are_refused(loss, label):
    with raises(ValueError, "`labels` must be at least 0, or -1 for an image without label."):
        loss(rows(), torch.tensor([0, label, 0]))


@pytest.mark.parametrize("shape", [(2,), (6,), (3, 1), ()])
def test_domains_of_another_shape_are_refused(shape):
    with raises(ValueError, f"`domains` must have shape (3,), one for each image, got {shape}."):
        cross_domain_loss(torch.ones(2, 3, 4), LABELS, torch.zeros(shape, dtype=torch.int64), temperature=0.1)


def test_domains_that_are_not_integers_are_refused():
    with raises(TypeError, "`domains` must hold integers, got torch.float32."):
        cross_domain_loss(rows(), LABELS, DOMAINS.float(), temperature=0.1)


def test_domains_on_another_device_are_refused():
    with raises(ValueError, "`domains` must be on the same device as the rest, cpu, got meta."):
        cross_domain_loss(rows(), LABELS, DOMAINS.to("meta"), temperature=0.1)


@pytest.mark.parametrize("same_domain", ["ignore", "positive"])
@pytest.mark.parametrize("domain", [0, 7, -1])
def test_images_of_one_domain_only_are_refused(domain, same_domain):
    domains = torch.full((3,), domain)
    with raises(ValueError, "`domains` must hold at least 2 different domains over the whole batch, got 1."):
        cross_domain_loss(rows(), LABELS, domains, temperature=0.1, same_domain=same_domain)


@pytest.mark.parametrize("shape", [(), (2, 2), (3, 1)])
def test_count_positives_refuses_labels_of_another_shape(shape):
    labels = torch.zeros(shape, dtype=torch.int64)
    with raises(ValueError, f"`labels` must have shape ({labels.numel()},), one for each image, got {shape}."):
        count_positives(labels)


@pytest.mark.parametrize("shape", [(), (2,), (3, 1)])
def test_count_positives_refuses_domains_of_another_shape(shape):
    with raises(ValueError, f"`domains` must have shape (3,), one for each image, got {shape}."):
        count_positives(LABELS, torch.zeros(shape, dtype=torch.int64))


def test_count_positives_refuses_labels_that_are_not_integers():
    with raises(TypeError, "`labels` must hold integers, got torch.float32."):
        count_positives(LABELS.float())


def test_count_positives_refuses_domains_that_are_not_integers():
    with raises(TypeError, "`domains` must hold integers, got torch.float64."):
        count_positives(LABELS, DOMAINS.double())


# Additional negatives


@pytest.mark.parametrize("shape", [(4,), (5, 3), (1, 5, 4), (4, 5)])
def test_negatives_of_another_shape_are_refused(shape):
    with raises(ValueError, f"`negatives` must have shape (k, 4), got {shape}."):
        info_nce_loss(rows(), rows(), temperature=0.1, negatives=torch.ones(shape))


def test_negatives_that_are_not_of_floating_point_numbers_are_refused():
    message = "`query` and `negatives` must hold floating point numbers, got torch.float32, torch.int64."
    with raises(TypeError, message):
        info_nce_loss(rows(), rows(), temperature=0.1, negatives=torch.ones(5, 4, dtype=torch.int64))


def test_negatives_on_another_device_are_refused():
    with raises(ValueError, "`query` and `negatives` must be on one device, got cpu, meta."):
        info_nce_loss(rows(), rows(), temperature=0.1, negatives=rows(5, device="meta"))


# Gradients of gradients


@reduced
def test_a_graph_of_the_gradient_is_refused(loss):
    z = rows().requires_grad_()
    with raises(
        NotImplementedError, "The losses of cl_losses can be differentiated once: `create_graph` must be False."
    ):
        torch.autograd.grad(loss(z), z, create_graph=True)


def test_a_graph_of_a_learnt_temperatures_gradient_is_refused():
    temperature = torch.tensor(0.1, requires_grad=True)
    loss = info_nce_loss(rows(), rows(), temperature=temperature)
    with raises(
        NotImplementedError, "The losses of cl_losses can be differentiated once: `create_graph` must be False."
    ):
        torch.autograd.grad(loss, temperature, create_graph=True)


@pytest.mark.parametrize("loss", [byol_loss, lambda s, t: distillation_loss(s, t, temperature=1.0)])
def test_losses_of_rows_by_themselves_have_gradients_of_gradients(loss):
    z = rows(dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, rows(dtype=torch.float64)), z)


# Modules refuse on call what functions refuse


@pytest.mark.parametrize(
    ("module", "batch", "message"),
    [
        (
            NTXentLoss(temperature=0.1),
            (rows(3), rows(2)),
            "`z_a` and `z_b` must have one shape (n, d), got (3, 4) and (2, 4).",
        ),
        (InfoNCELoss(temperature=0.1), (rows(), rows(), rows(2, 5)), "`negatives` must have shape (k, 4), got (2, 5)."),
        (
            SupConLoss(temperature=0.1),
            (rows(2), LABELS),
            "`labels` must have shape (2,), one for each image, got (3,).",
        ),
        (
            CrossDomainLoss(temperature=0.1),
            (rows(), LABELS, DOMAINS[:2]),
            "`domains` must have shape (3,), one for each image, got (2,).",
        ),
        (BYOLLoss(), (rows(0), rows(0)), "`prediction` and `target` must hold at least 1 row, got 0."),
        (
            DistillationLoss(temperature=0.1),
            (rows(3), rows(2)),
            "`student_logits` and `teacher_logits` must have one shape (n, classes), got (3, 4) and (2, 4).",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_a_module_refuses_on_call_what_the_function_refuses(module, batch, message):
    with raises(ValueError, message):
        module(*batch)


# A GPU's checks, whose outcome arrives later. The GPU is played by the CPU.


class OnGPU(Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")


class Event:
    """Arrives when the test says so."""

    all_arrived = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return Event.all_arrived


@pytest.fixture
def gpu(monkeypatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory=False, **kw: empty(*a, **kw)
    )  # there is no GPU to pin for
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(Event, "all_arrived", False)
    _deferred._on_the_way.clear()
    yield
    _deferred._on_the_way.clear()


def on_gpu(ok: bool) -> Tensor:
    return torch.tensor(ok).as_subclass(OnGPU)


def nt_xent_of_good_rows() -> Tensor:
    return nt_xent_loss(rows(), rows(), temperature=0.1)


LATER = {
    "nt_xent": nt_xent_of_good_rows,
    "info_nce": lambda: info_nce_loss(rows(), rows(), temperature=0.1),
    "sup_con": lambda: sup_con_loss(rows(), LABELS, temperature=0.1),
    "cross_domain": lambda: cross_domain_loss(rows(), LABELS, DOMAINS, temperature=0.1),
}


def test_a_failed_check_on_a_gpu_raises_nothing_until_it_has_arrived(gpu):
    _deferred.require(on_gpu(False), "`z` must be good.")
    assert nt_xent_of_good_rows().isfinite()


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_a_failed_check_on_a_gpu_is_raised_by_the_next_call_of_any_loss_once_it_has_arrived(later, gpu):
    _deferred.require(on_gpu(False), "`z` must be good.")
    Event.all_arrived = True
    with raises(ValueError, "In an earlier call on a GPU: `z` must be good."):
        later()


def test_a_failed_check_on_a_gpu_is_raised_once(gpu):
    _deferred.require(on_gpu(False), "`z` must be good.")
    _deferred.require(on_gpu(False), "`z` must be better.")  # of the same call: it would be raised for good rows
    Event.all_arrived = True
    with raises(ValueError, "In an earlier call on a GPU: `z` must be good."):
        nt_xent_of_good_rows()
    assert nt_xent_of_good_rows().isfinite()


def test_a_check_on_a_gpu_that_holds_raises_nothing(gpu):
    _deferred.require(on_gpu(True), "`z` must be good.")
    Event.all_arrived = True
    assert nt_xent_of_good_rows().isfinite()
    assert not _deferred._on_the_way


def test_a_failed_check_on_a_gpu_is_raised_after_those_that_hold(gpu):
    _deferred.require(on_gpu(True), "`labels` must be good.")
    _deferred.require(on_gpu(False), "`z` must be good.")
    Event.all_arrived = True
    with raises(ValueError, "In an earlier call on a GPU: `z` must be good."):
        nt_xent_of_good_rows()


def test_a_check_on_a_gpu_whose_graph_is_captured_is_left_out(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    _deferred.require(on_gpu(False), "`z` must be good.")
    assert not _deferred._on_the_way


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_on_a_gpu_that_are_not_finite_are_refused_by_a_later_call():
    z = with_row(3, math.nan).cuda()
    nt_xent_loss(z, z, temperature=0.1)
    torch.cuda.synchronize()
    message = "`z_a` and `z_b` must be finite, and so must the norms of their rows."
    with raises(ValueError, f"In an earlier call on a GPU: {message}"):
        nt_xent_loss(rows(5).cuda(), rows(5).cuda(), temperature=0.1)
