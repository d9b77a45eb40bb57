"""The loss of distillation: against its equation and its closed forms."""

import math

import pytest
import torch
from cl_losses import DistillationLoss, distillation_loss
from torch import Tensor
from torch.testing import assert_close

TEMPERATURES = [0.001, 0.1, 1.0, 10.0]


def softmax_by_loops(logits: Tensor, *, temperature: float) -> list[Tensor]:
    largest = max(logits.tolist())
    powers = [torch.exp((x - largest) / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def log_softmax_by_loops(logits: Tensor, *, temperature: float) -> list[Tensor]:
    largest = max(logits.tolist())
    total = sum(torch.exp((x - largest) / temperature) for x in logits)
    return [(x - largest) / temperature - torch.log(total) for x in logits]


def distillation_by_loops(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Eq. 2 of arXiv:2006.10029 times the square of the temperature, row by row and class by class."""
    losses = []
    for s, t in zip(student_logits, teacher_logits, strict=True):
        p, log_q = softmax_by_loops(t, temperature=temperature), log_softmax_by_loops(s, temperature=temperature)
        losses.append(-(temperature**2) * sum(a * b for a, b in zip(p, log_q, strict=True)))
    return sum(losses) / len(losses)


def logits(n: int = 5, classes: int = 4, *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64).to(dtype)


def gradient(student: Tensor, teacher: Tensor, loss=distillation_loss, **arguments) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, teacher, **arguments), student)[0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (1, 4), (5, 2), (5, 7)])
def test_distillation_is_equation_2_times_the_temperature_squared(n, classes, temperature):
    s, t = logits(n, classes, seed=0), logits(n, classes, seed=1)
    expected = distillation_by_loops(s, t, temperature=temperature)
    assert_close(distillation_loss(s, t, temperature=temperature), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_has_the_gradient_of_equation_2(temperature):
    s, t = logits(seed=0), logits(seed=1)
    expected = gradient(s, t, distillation_by_loops, temperature=temperature)
    assert_close(gradient(s, t, temperature=temperature), expected, rtol=1e-11, atol=1e-15 * temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_of_the_teacher_itself_is_its_entropy_times_the_temperature_squared(temperature):
    t = logits(seed=0)
    entropies = [-sum(p * torch.log(p) for p in softmax_by_loops(row, temperature=temperature) if p > 0) for row in t]
    expected = temperature**2 * sum(entropies) / len(entropies)
    assert_close(distillation_loss(t, t, temperature=temperature), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_distillation_is_least_at_the_teacher(temperature):
    t = logits(seed=0)
    least = distillation_loss(t, t, temperature=temperature)
    assert all(distillation_loss(logits(seed=s), t, temperature=temperature) > least for s in range(1, 20))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_has_no_gradient_at_the_teacher(temperature):
    t = logits(seed=0)
    assert gradient(t, t, temperature=temperature).abs().max() < 1e-15 * max(1, temperature)


def test_distillation_of_alike_classes_is_the_log_of_their_number_times_the_temperature_squared():
    loss = distillation_loss(torch.zeros(3, 8).double(), torch.zeros(3, 8).double(), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(8) / 4, abs=1e-15)


def test_distillation_of_a_certain_teacher_is_cross_entropy():
    s, classes = logits(seed=0), torch.tensor([3, 0, 1, 1, 2])
    t = 1e4 * torch.nn.functional.one_hot(classes, 4).double()
    expected = torch.nn.functional.cross_entropy(s, classes)
    assert_close(distillation_loss(s, t, temperature=1.0), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_is_invariant_to_a_number_added_to_a_row_of_logits(temperature):
    s, t = logits(seed=0), logits(seed=1)
    shift = torch.tensor([[-7.0], [3], [0], [1], [20]]).double()
    expected = distillation_loss(s, t, temperature=temperature)
    assert_close(distillation_loss(s + shift, t - shift, temperature=temperature), expected, rtol=1e-11, atol=1e-15)


def test_distillation_is_that_of_scaled_logits_at_temperature_1():
    s, t = logits(seed=0), logits(seed=1)
    expected = 0.25 * distillation_loss(2 * s, 2 * t, temperature=1.0)
    assert_close(distillation_loss(s, t, temperature=0.5), expected, rtol=1e-14, atol=0)


def test_distillation_gives_the_teacher_no_gradient():
    s, t = logits(seed=0).requires_grad_(), logits(seed=1).requires_grad_()
    distillation_loss(s, t, temperature=1.0).backward()
    assert t.grad is None
    assert s.grad.norm() > 0.1


def test_distillation_keeps_the_size_of_the_gradient_as_temperature_grows():
    # Of softened logits all near 0, q - p is (s - t) / (classes temperature), where rows of logits have mean 0.
    s, t = (x - x.mean(dim=1, keepdim=True) for x in (logits(seed=0), logits(seed=1)))
    assert_close(gradient(s, t, temperature=1e6), (s - t) / (5 * 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_gradient_of_a_row_is_at_most_sqrt_2_temperature_over_the_number_of_rows(temperature):
    norms = gradient(100 * logits(seed=0), 100 * logits(seed=1), temperature=temperature).norm(dim=1)
    assert norms.max() <= math.sqrt(2) * temperature / 5 * (1 + 1e-14)
    assert norms.max() > temperature / 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distillation_of_half_precision_is_float32s_on_the_rounded_input(dtype):
    s, t = logits(seed=0, dtype=dtype), logits(seed=1, dtype=dtype)
    expected = distillation_loss(s.float(), t.float(), temperature=0.1)
    assert_close(distillation_loss(s, t, temperature=0.1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distillation_gradient_of_half_precision_is_float32s_rounded(dtype):
    s, t = logits(seed=0, dtype=dtype), logits(seed=1, dtype=dtype)
    expected = gradient(s.float(), t.float(), temperature=0.1).to(dtype)
    assert_close(gradient(s, t, temperature=0.1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillation_of_float32_is_near_float64s(temperature):
    s, t = logits(seed=0, dtype=torch.float32), logits(seed=1, dtype=torch.float32)
    expected = distillation_loss(s.double(), t.double(), temperature=temperature).item()
    assert distillation_loss(s, t, temperature=temperature).item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("given", "returned"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_distillation_keeps_float64_and_is_else_float32(given, returned):
    loss = distillation_loss(logits(seed=0, dtype=given), logits(seed=1, dtype=given), temperature=0.1)
    assert loss.dtype == returned


def test_distillation_does_not_overflow():
    s = torch.tensor([[0.0, 1e4]])
    assert distillation_loss(s, -s, temperature=0.001).item() == pytest.approx(1e4 * 0.001, rel=1e-6)


def test_distillation_module_equals_the_function():
    s, t = logits(seed=0), logits(seed=1)
    expected = distillation_loss(s, t, temperature=0.3)
    assert_close(DistillationLoss(temperature=0.3)(s, t), expected, rtol=0, atol=0)
