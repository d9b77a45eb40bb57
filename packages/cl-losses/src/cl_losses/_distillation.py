"""The loss of distillation, SimCLR v2's third stage."""

from torch import Tensor, nn
from torch.nn import functional

from cl_losses._checks import as_number, check_finite_rows, check_rows, check_temperature, check_tensors
from cl_losses._precision import float32_or_wider, without_autocast


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    r"""Cross entropy of the student's class distribution under the teacher's, both softened, times tau^2.

    With $p = \mathrm{softmax}(t / \tau)$ of the teacher's logits and $q = \mathrm{softmax}(s / \tau)$ of the student's,
    the mean over rows of Eq. 2,

    $$\ell_i = -\tau^2 \sum_c p_{ic} \log q_{ic}.$$

    The factor, from Hinton et al. and the authors' code (Eq. 2 has none), keeps the gradient's size independent of
    tau. The teacher gets no gradient, it is stopped here. The loss of a row needs no other row, so nothing is gathered:
    under DistributedDataParallel the gradient is that of one process if all have equally many rows.

    Args:
        student_logits: s, shape (n, classes).
        teacher_logits: t, same shape and order.
        temperature: tau > 0, dimensionless. The paper uses 0.1 for a student like the teacher and 1.0 for a smaller
            one, and reports that it matters little.

    Returns:
        Scalar in nats, float32 (float64 for float64 input), also inside autocast; tau^2 times the teacher's mean
        entropy when the student's logits are the teacher's, and never less.

    Raises:
        ValueError: The shapes differ, are not (n, classes), or hold no row; `temperature` <= 0; a number is not finite
            (on a GPU raised by a later call, under torch.compile not looked for).
        TypeError: An argument is not a tensor of floating point numbers, or `temperature` is a tensor.

    Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, 2020, arXiv:2006.10029. Hinton et al.,
    Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """
    check_tensors(student_logits=student_logits, teacher_logits=teacher_logits)
    temperature = as_number(temperature)
    check_temperature(temperature)
    check_rows(columns="classes", student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.shape[0] == 0:
        raise ValueError("`student_logits` and `teacher_logits` must hold at least 1 row, got none.")
    check_finite_rows(student_logits=student_logits, teacher_logits=teacher_logits)
    with without_autocast(student_logits):
        log_q = functional.log_softmax(float32_or_wider(student_logits) / temperature, dim=1)
        p = functional.softmax(float32_or_wider(teacher_logits.detach()) / temperature, dim=1)
        return -(temperature**2) * (p * log_q).sum(dim=1).mean()


class DistillationLoss(nn.Module):
    """`distillation_loss` as a module.

    Args:
        temperature: tau > 0.

    Shape:
        student_logits (n, classes), teacher_logits (n, classes) -> scalar.

    Raises:
        ValueError: `temperature` <= 0; on call, as `distillation_loss`.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss of a student's logits against its teacher's."""
        return distillation_loss(student_logits, teacher_logits, temperature=self.temperature)

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"temperature={self.temperature}"
