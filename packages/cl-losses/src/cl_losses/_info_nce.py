"""InfoNCE: of two sets of rows, each row of one against all of the other."""

from torch import Tensor, distributed, nn

from cl_losses._agree import group_name
from cl_losses._checks import Reduction, check_reduction, check_temperature, check_tensors
from cl_losses._cross_contrast import cross_contrast


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor,
    negatives: Tensor | None = None,
    symmetric: bool = False,
    decoupled: bool = False,
    reduction: Reduction = "mean",
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Cross entropy of picking each query's key out of all keys (InfoNCE).

    Row `i` of `key` is the positive of row `i` of `query`; the other keys, and all rows of `negatives`, are its
    negatives. Write $s_{ik}$ for the cosine of query $i$ and candidate $k$. The value is the mean over $i$ of Eq. 1 of
    MoCo (Eq. 4 of van den Oord et al. with cosines),

    $$\ell_i = -\log \frac{\exp(s_{ii} / \tau)}{\sum_{k} \exp(s_{ik} / \tau)}.$$

    Unlike in `nt_xent_loss`, queries are no candidates of queries. With `symmetric` the value is the mean of this and
    of the same with queries and keys exchanged, where `negatives` have no part: CLIP's loss. With `decoupled` the
    positive is left out of the sum in the denominator (DCL).

    Several processes: with `gather`, queries meet the keys of all processes, which may hold different numbers of them,
    and gradients averaged over processes, as DistributedDataParallel does, are those of one process with the whole
    batch. `negatives` are not gathered: a queue that is the same on all processes, as MoCo's is, gives the result of
    one process. A temperature that is learnt gets its gradient in the same way.

    Memory is linear in the number of rows.

    Args:
        query: Shape (n, d). Its scale is irrelevant: rows are normalised here.
        key: Same shape and order. For MoCo, detach it: then nothing is spent on its gradient.
        temperature: tau > 0, dimensionless. MoCo uses 0.07. A tensor of one element gets a gradient, such as
            `logit_scale.exp().reciprocal()` of CLIP; the host reads its value, and tiles are float64.
        negatives: Additional negatives of all queries, shape (k, d), such as MoCo's queue. Normalised here.
        symmetric: Also pick each key's query, and average.
        decoupled: Leave the positive out of the denominator.
        reduction: "mean" over the rows of all processes; "sum" of them; "none": the losses of this process's rows.
        gather: Take keys from all processes of `group` when torch.distributed is initialised.
        group: Process group; by default the default one.

    Returns:
        In nats, float32 (float64 for float64 input), also inside autocast: a scalar, or shape (n,) for "none".
        log(n + k) when all rows are equal.

    Raises:
        ValueError: The shapes differ or are not (n, d), `temperature` <= 0, a number is not finite (on a GPU raised by
            a later call), or a query has no candidate beside its positive.
        TypeError: A tensor is not of floating point numbers.

    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, arXiv:1807.03748. He et al.,
    Momentum Contrast, 2020, arXiv:1911.05722. Radford et al., CLIP, 2021, arXiv:2103.00020. Yeh et al., Decoupled
    Contrastive Learning, 2022, arXiv:2110.06848.
    """
    check_tensors(query=query, key=key)
    if negatives is not None:
        check_tensors(negatives=negatives)
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(
                "`temperature` must be a number or a floating point tensor of one, "
                f"got shape {tuple(temperature.shape)} and {temperature.dtype}."
            )
        learnt, temperature = temperature, 1.0
    else:
        learnt = None
    return cross_contrast(
        query,
        key,
        negatives,
        learnt,
        float(temperature),
        decoupled,
        symmetric,
        reduction,
        gather,
        group_name(group),
    )


class InfoNCELoss(nn.Module):
    """`info_nce_loss` as a module: hyperparameters here, tensors in the call.

    Args:
        temperature: tau > 0. One that is learnt is a tensor, and that goes to `info_nce_loss`.
        symmetric: Also pick each key's query, and average.
        decoupled: Leave the positive out of the denominator.
        reduction: "mean", "sum" or "none".
        gather: Take keys from all processes.
        group: Process group; by default the default one.

    Shape:
        query (n, d), key (n, d), negatives (k, d) -> scalar, or (n,) with reduction "none".

    Raises:
        ValueError: `temperature` <= 0 or an unknown reduction; on call, as `info_nce_loss`.
    """

    def __init__(
        self,
        *,
        temperature: float,
        symmetric: bool = False,
        decoupled: bool = False,
        reduction: Reduction = "mean",
        gather: bool = True,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        self.temperature, self.symmetric, self.decoupled = temperature, symmetric, decoupled
        self.reduction, self.gather, self.group = reduction, gather, group

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss of queries against keys."""
        return info_nce_loss(
            query,
            key,
            temperature=self.temperature,
            negatives=negatives,
            symmetric=self.symmetric,
            decoupled=self.decoupled,
            reduction=self.reduction,
            gather=self.gather,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"temperature={self.temperature}, symmetric={self.symmetric}, decoupled={self.decoupled}, "
            f"reduction={self.reduction!r}, gather={self.gather}"
        )
