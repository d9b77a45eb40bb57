"""The loss of BYOL."""

from torch import Tensor, nn
from torch.nn import functional

from cl_losses._checks import check_finite_rows, check_rows, check_tensors
from cl_losses._precision import float32_or_wider, without_autocast


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Squared distance of unit vectors, 2 - 2 cos, from the online prediction to the target's projection.

    The mean over rows of Eq. 2,

    $$\ell_i = \left\lVert \frac{q_i}{\lVert q_i \rVert} - \frac{z'_i}{\lVert z'_i \rVert} \right\rVert^2
    = 2 - 2 \cos(q_i, z'_i).$$

    One direction: BYOL adds the loss with the views exchanged (0 to 8 in all). The target gets no gradient, it is
    stopped here. The loss of a row needs no other row, so nothing is gathered: under DistributedDataParallel with
    equal shares the gradient is that of one process.

    Args:
        prediction: q, output of the online network's predictor, shape (n, d). Normalised here.
        target: z', output of the target network's projector, same shape and order. Normalised here.

    Returns:
        Scalar in [0, 4], float32 (float64 for float64 input), also inside autocast.

    Raises:
        ValueError: The shapes differ, are not (n, d), or hold no row; a number is not finite (on a GPU raised by a
            later call, under torch.compile not looked for).
        TypeError: An argument is not a tensor of floating point numbers.

    Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733.
    """
    check_tensors(prediction=prediction, target=target)
    check_rows(prediction=prediction, target=target)
    if len(prediction) == 0:
        raise ValueError("`prediction` and `target` must hold at least 1 row, got 0.")
    check_finite_rows(prediction=prediction, target=target)
    with without_autocast(prediction):
        q = functional.normalize(float32_or_wider(prediction), dim=1)
        z = functional.normalize(float32_or_wider(target.detach()), dim=1)
        return (2 - 2 * (q * z).sum(dim=1)).mean()


class BYOLLoss(nn.Module):
    """`byol_loss` as a module.

    Shape:
        prediction (n, d), target (n, d) -> scalar.

    Raises:
        ValueError: On call, as `byol_loss`.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of predictions against targets."""
        return byol_loss(prediction, target)
