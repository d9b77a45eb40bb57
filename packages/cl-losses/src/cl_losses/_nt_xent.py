"""NT-Xent, the loss of SimCLR."""

from torch import Tensor, distributed, nn

from cl_losses._agree import group_name
from cl_losses._checks import Reduction, as_number, check_reduction, check_temperature, check_tensors
from cl_losses._self_contrast import self_contrast


def nt_xent_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float,
    decoupled: bool = False,
    reduction: Reduction = "mean",
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Cross entropy of picking each row's other view out of the batch (NT-Xent).

    Rows `i` of `z_a` and `z_b` are two views of image `i`. Write $z_1 \dots z_{2n}$ for all rows, $j(i)$ for the
    other view of $i$ and $s_{ik}$ for the cosine of $z_i$ and $z_k$. The value is the mean over $i$ of Eq. 1,

    $$\ell_i = -\log \frac{\exp(s_{i,j(i)} / \tau)}{\sum_{k \ne i} \exp(s_{ik} / \tau)}.$$

    Several processes: with `gather`, every row is compared with the rows of all processes, each process calls this
    with its own share of the batch (shares may differ in size), and all get the same value. Gradients averaged over
    processes, as DistributedDataParallel does, are those of one process with the whole batch.

    Memory is linear in the number of rows: the matrix of cosines is computed a tile at a time, once for the value and
    once for the gradient, and never stored. The gradient can be taken once, not differentiated again.

    With `decoupled` the positive is left out of the sum, $k \notin \{i, j(i)\}$: the decoupled loss (DCL), whose
    gradient does not fade as the positive is found.

    The authors' code adds the means of the two views' rows instead of averaging over all: twice this value. With
    SGD that doubles the learning rate. With LARS it does so only for BatchNorm and biases, which LARS does not rescale,
    and weighs the decay of the other weights half as much against the gradient.

    Args:
        z_a: Projections of the first views, shape (n, d). Their scale is irrelevant: rows are normalised here.
        z_b: Projections of the second views, same shape and order.
        temperature: tau > 0, dimensionless. The paper uses 0.1 on ImageNet (Table 5) and 0.5 on CIFAR-10.
        decoupled: Leave the positive out of the denominator.
        reduction: "mean" over all 2n rows of all processes; "sum" of them; "none": the losses of this process's
            rows, first views first; their gradients are exchanged in backward, where all processes must take part.
        gather: Take negatives from all processes of `group` when torch.distributed is initialised; without it from
            this process only, and the value is this process's.
        group: Process group; by default the default one.

    Returns:
        In nats, float32 (float64 for float64 input), also inside autocast: a scalar, or shape (2n,) for "none".
        log(2n - 1) when all rows are equal.

    Raises:
        ValueError: The shapes differ or are not (n, d), `temperature` <= 0, `reduction` is none of the three, a number
            is not finite (on a GPU raised by a later call), there are fewer than 2 images in all (no negatives), or
            processes differ in width, dtype or hyperparameters.
        TypeError: A tensor is not of floating point numbers.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709. Yeh et
    al., Decoupled Contrastive Learning, 2022, arXiv:2110.06848.
    """
    check_tensors(z_a=z_a, z_b=z_b)
    return self_contrast(
        z_a, z_b, None, None, as_number(temperature), decoupled, False, False, reduction, gather, group_name(group)
    )


class NTXentLoss(nn.Module):
    """`nt_xent_loss` as a module: hyperparameters here, tensors in the call.

    Args:
        temperature: tau > 0.
        decoupled: Leave the positive out of the denominator.
        reduction: "mean", "sum" or "none".
        gather: Take negatives from all processes.
        group: Process group; by default the default one.

    Shape:
        z_a (n, d), z_b (n, d) -> scalar, or (2n,) with reduction "none".

    Raises:
        ValueError: `temperature` <= 0 or an unknown reduction; on call, as `nt_xent_loss`.
    """

    def __init__(
        self,
        *,
        temperature: float,
        decoupled: bool = False,
        reduction: Reduction = "mean",
        gather: bool = True,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        self.temperature, self.decoupled = temperature, decoupled
        self.reduction, self.gather, self.group = reduction, gather, group

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views' projections."""
        return nt_xent_loss(
            z_a,
            z_b,
            temperature=self.temperature,
            decoupled=self.decoupled,
            reduction=self.reduction,
            gather=self.gather,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"temperature={self.temperature}, decoupled={self.decoupled}, reduction={self.reduction!r}, "
            f"gather={self.gather}"
        )
