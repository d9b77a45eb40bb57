"""From the losses of rows to a value, and back."""

import torch
from torch import Tensor

from cl_losses._agree import Processes, gather_rows


def share(*of_rows: Tensor, processes: Processes, views: int) -> tuple[Tensor, ...]:
    """Numbers of this process's rows, (m,) each, as those of all processes' rows, (M,) each, in one exchange."""
    if processes.world == 1:
        return of_rows
    together = gather_rows(torch.stack(of_rows, dim=1), processes, views=views)
    return tuple(column.contiguous() for column in together.unbind(1))


def reduce_rows(losses: Tensor, *, reduction: str, counted: Tensor | int) -> Tensor:
    """The sum of the losses of all rows, or their mean over as many as count.

    Every process adds the same numbers in the same order, so all get the same value.
    """
    return losses.sum() / counted if reduction == "mean" else losses.sum()


def weigh_rows(
    grad: Tensor, *, reduction: str, counted: Tensor | int, rows: int, processes: Processes, views: int
) -> Tensor:
    """The gradient of what is differentiated with respect to the loss of every row of all processes, (M,)."""
    if reduction == "none":
        return gather_rows(grad.contiguous(), processes, views=views)
    # The value is the same on every process and each differentiates it; DDP divides the sum by their number.
    grad = grad * processes.world
    return (grad / counted if reduction == "mean" else grad).expand(rows)
