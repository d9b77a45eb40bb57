"""SupCon: all rows of a class are each other's positives."""

from torch import Tensor, distributed, nn

from cl_losses._agree import group_name
from cl_losses._checks import Reduction, as_number, check_reduction, check_temperature, check_tensors
from cl_losses._self_contrast import self_contrast


def sup_con_loss(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    reduction: Reduction = "mean",
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Cross entropy of picking each row's positives, the other rows of its class, out of the batch (SupCon, L_out).

    Write $z_1 \dots z_M$ for all rows, views of all images, $s_{ik}$ for the cosine of $z_i$ and $z_k$, and $P(i)$ for
    the rows other than $i$ that are views of the same image or of an image with the same label. An image labelled -1
    has its own views only. The value is the mean over the rows with a positive of Eq. 2,

    $$\ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
    \log \frac{\exp(s_{ip} / \tau)}{\sum_{k \ne i} \exp(s_{ik} / \tau)}.$$

    A row without positives contributes nothing, and the mean does not count it; `count_positives` tells which rows
    those are. If no row has a positive the value is 0. Without labels, all -1, and with two views this is
    `nt_xent_loss`. The authors' code multiplies by temperature / 0.07 and takes the mean over all rows.

    Several processes, precision and memory are as for `nt_xent_loss`: the gradient is that of one process with the
    whole batch, and memory is linear in the number of rows, whatever the classes.

    Args:
        z: Projections, shape (n, d), or (views, n, d) with the views of image i at [:, i]. Normalised here.
        labels: Shape (n,), integers: classes, or -1 for an image without label.
        temperature: tau > 0, dimensionless. The paper uses 0.1.
        reduction: "mean" over the rows of all processes that have a positive; "sum"; "none": the losses of this
            process's rows, first views first, 0 for rows without positives.
        gather: Take rows from all processes of `group` when torch.distributed is initialised.
        group: Process group; by default the default one.

    Returns:
        In nats, float32 (float64 for float64 input), also inside autocast: a scalar, or shape (views * n,) for "none".
        log(M - 1) when all rows are equal.

    Raises:
        ValueError: The shapes do not fit, `temperature` <= 0, a label is below -1 or a number not finite (on a GPU
            raised by a later call), or there are fewer than 2 images in all.
        TypeError: `z` is not of floating point numbers or `labels` not of integers.

    Khosla et al., Supervised Contrastive Learning, 2020, arXiv:2004.11362.
    """
    check_tensors(z=z, labels=labels)
    return self_contrast(
        z, None, labels, None, as_number(temperature), False, False, False, reduction, gather, group_name(group)
    )


class SupConLoss(nn.Module):
    """`sup_con_loss` as a module: hyperparameters here, tensors in the call.

    Args:
        temperature: tau > 0.
        reduction: "mean", "sum" or "none".
        gather: Take rows from all processes.
        group: Process group; by default the default one.

    Shape:
        z (n, d) or (views, n, d), labels (n,) -> scalar, or (views * n,) with reduction "none".

    Raises:
        ValueError: `temperature` <= 0 or an unknown reduction; on call, as `sup_con_loss`.
    """

    def __init__(
        self,
        *,
        temperature: float,
        reduction: Reduction = "mean",
        gather: bool = True,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        self.temperature, self.reduction, self.gather, self.group = temperature, reduction, gather, group

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """The loss of labelled projections."""
        return sup_con_loss(
            z, labels, temperature=self.temperature, reduction=self.reduction, gather=self.gather, group=self.group
        )

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}, gather={self.gather}"
