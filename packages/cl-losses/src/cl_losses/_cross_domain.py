"""Cross-domain contrast: classes attract across domains."""

from typing import Literal, get_args

from torch import Tensor, distributed, nn

from cl_losses._agree import group_name
from cl_losses._checks import Reduction, as_number, check_reduction, check_temperature, check_tensors
from cl_losses._self_contrast import self_contrast

SameDomain = Literal["ignore", "positive"]
SAME_DOMAIN = get_args(SameDomain)
Unlabelled = Literal["everywhere", "own_domain"]
UNLABELLED = get_args(Unlabelled)


def cross_domain_loss(
    z: Tensor,
    labels: Tensor,
    domains: Tensor,
    *,
    temperature: float,
    same_domain: SameDomain = "ignore",
    unlabelled: Unlabelled = "everywhere",
    reduction: Reduction = "mean",
    gather: bool = True,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Cross entropy of picking each row's class in the other domains, and its own other views, out of the batch.

    The batch mixes images of several domains, such as renderings and photographs. An encoder that is trained on
    labelled renderings and used on photographs must give an image the place of its class, not of its domain. This loss
    asks for that alone: rows of one class attract each other where they are of different domains, and all other
    classes are repelled, in whatever domain. What it does not ask for is that one class and domain become a point.

    Write $z_1 \dots z_M$ for all rows, views of all images, $s_{ik}$ for the cosine of $z_i$ and $z_k$, and $x_i$,
    $y_i$, $d_i$ for the image, label and domain of row $i$. A row's positives are its image's other views and its class
    in other domains, and it is compared with its positives and with all rows of other classes:

    $$P(i) = \{p \ne i : x_p = x_i \;\text{or}\; (y_p = y_i,\, d_p \ne d_i)\}, \qquad
    A(i) = P(i) \cup \{k : x_k \ne x_i,\, y_k \ne y_i\},$$

    $$\ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
    \log \frac{\exp(s_{ip} / \tau)}{\sum_{k \in A(i)} \exp(s_{ik} / \tau)}.$$

    The value is the mean over the rows that have a positive; `count_positives` tells which rows have none.

    Other images of a row's class and domain are in neither set. As negatives they would push a class apart within each
    domain, against what the labels say. As positives, which `same_domain="positive"` makes them, they are the
    easiest ones, and outnumber the others where one domain is larger: the loss can fall while the domains stay apart.
    With `"positive"` the value is that of `sup_con_loss`, unless `unlabelled` says otherwise.

    An image without label, -1, is a class of its own: its other views are its positives, all other images repel it. So
    labels are needed in one domain only as far as there are some in another: unlabelled photographs still shape the
    space they share, as in `nt_xent_loss`. But a photograph is then repelled by the renderings of its own class too,
    which tells the domains apart. `unlabelled="own_domain"` leaves that out: an image without label and an image of
    another domain are never compared, $A(i)$ loses $\{k : d_k \ne d_i,\, y_i = -1 \;\text{or}\; y_k = -1\}$, and the
    rows of an unlabelled domain have the terms of `nt_xent_loss` on that domain alone. Prefer it where most of a domain
    has no labels. With "everywhere", domains of unlabelled images do not matter.

    Properties, all tested: rows may be scaled, rotated together and permuted; labels and domains renamed; with one
    image per class and domain and two domains, (z of domain 0, z of domain 1) give `nt_xent_loss`, a class in two
    domains being what an image in two views is; without labels, two views give `nt_xent_loss` whatever the domains, or
    that of each domain by itself; the gradient of a row with respect to its own length is 0. Equal rows give
    log |A(i)|, averaged.

    Several processes, precision and memory are as for `nt_xent_loss`: domains and classes are compared over the whole
    batch, the gradient is that of one process, and memory is linear in the number of rows.

    Args:
        z: Projections, shape (n, d), or (views, n, d) with the views of image i at [:, i]. Normalised here.
        labels: Shape (n,), integers: classes, common to all domains, or -1 for an image without label.
        domains: Shape (n,), integers: the domain of each image.
        temperature: tau > 0, dimensionless; 0.1 to 0.5 as for `nt_xent_loss`.
        same_domain: What other images of a row's class and domain are: "ignore" or "positive".
        unlabelled: Which images repel one without label, and are repelled by it: those "everywhere", or of its
            "own_domain".
        reduction: "mean" over the rows of all processes that have a positive; "sum"; "none": the losses of this
            process's rows, first views first, 0 for rows without positives.
        gather: Take rows from all processes of `group` when torch.distributed is initialised.
        group: Process group; by default the default one.

    Returns:
        In nats, float32 (float64 for float64 input), also inside autocast: a scalar, or shape (views * n,) for "none".

    Raises:
        ValueError: The shapes do not fit, `temperature` <= 0, there are fewer than 2 images in all; or, raised by a
            later call on a GPU, all images are of one domain, a label is below -1, or a number is not finite.
        TypeError: `z` is not of floating point numbers, or `labels` or `domains` not of integers.

    The loss is this project's. It is the supervised contrast of Khosla et al. 2020 (arXiv:2004.11362, Eq. 2) with
    positives restricted to other domains, the restriction that Motiian et al. 2017 (arXiv:1709.10190) make for pairs.
    """
    check_tensors(z=z, labels=labels, domains=domains)
    check_same_domain(same_domain)
    check_unlabelled(unlabelled)
    return self_contrast(
        z,
        None,
        labels,
        domains,
        as_number(temperature),
        False,
        same_domain == "ignore",
        unlabelled == "own_domain",
        reduction,
        gather,
        group_name(group),
    )


def check_same_domain(same_domain: str) -> None:
    """Raise unless `same_domain` is one of the two."""
    if same_domain not in SAME_DOMAIN:
        raise ValueError(f"`same_domain` must be 'ignore' or 'positive', got {same_domain!r}.")


def check_unlabelled(unlabelled: str) -> None:
    """Raise unless `unlabelled` is one of the two."""
    if unlabelled not in UNLABELLED:
        raise ValueError(f"`unlabelled` must be 'everywhere' or 'own_domain', got {unlabelled!r}.")


class CrossDomainLoss(nn.Module):
    """`cross_domain_loss` as a module: hyperparameters here, tensors in the call.

    Args:
        temperature: tau > 0.
        same_domain: What other images of a row's class and domain are: "ignore" or "positive".
        unlabelled: Where an image without label is compared: "everywhere" or in its "own_domain".
        reduction: "mean", "sum" or "none".
        gather: Take rows from all processes.
        group: Process group; by default the default one.

    Shape:
        z (n, d) or (views, n, d), labels (n,), domains (n,) -> scalar, or (views * n,) with reduction "none".

    Raises:
        ValueError: `temperature` <= 0 or an unknown choice; on call, as `cross_domain_loss`.
    """

    def __init__(
        self,
        *,
        temperature: float,
        same_domain: SameDomain = "ignore",
        unlabelled: Unlabelled = "everywhere",
        reduction: Reduction = "mean",
        gather: bool = True,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_reduction(reduction)
        check_same_domain(same_domain)
        check_unlabelled(unlabelled)
        self.temperature, self.same_domain, self.unlabelled = temperature, same_domain, unlabelled
        self.reduction, self.gather, self.group = reduction, gather, group

    def forward(self, z: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """The loss of labelled projections of several domains."""
        return cross_domain_loss(
            z,
            labels,
            domains,
            temperature=self.temperature,
            same_domain=self.same_domain,
            unlabelled=self.unlabelled,
            reduction=self.reduction,
            gather=self.gather,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """Hyperparameters, for printing."""
        return (
            f"temperature={self.temperature}, same_domain={self.same_domain!r}, unlabelled={self.unlabelled!r}, "
            f"reduction={self.reduction!r}, gather={self.gather}"
        )
