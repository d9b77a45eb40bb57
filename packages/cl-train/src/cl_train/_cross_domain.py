"""Contrast of classes across domains as a method of the loop."""

from collections.abc import Callable
from typing import Any

import torch
from cl_augment import TwoViewAugment
from cl_losses import count_positives
from torch import Tensor, distributed, nn

from cl_train._contrast_figures import contrast_figures
from cl_train._domains import DomainDataset
from cl_train._errors import InputError
from cl_train._prototypes import Prototypes
from cl_train._simclr import SimCLREmbeddings, project
from cl_train._two_views import TwoViewMethod, online_probe, probe_loss


class CrossDomain(TwoViewMethod):
    r"""Two views of images of several domains: a class attracts itself across domains, and repels the others.

    Trained on a `DomainDataset`, whose labels and domains its loss is given, by `pretrain(sampler=DomainBatches(...))`,
    which sees to it that classes meet. With `CrossDomainLoss(unlabelled="own_domain")` an image without label is
    contrasted with those of its own domain, as by `NTXentLoss`: the share of a batch that has no label is the weight of
    SimCLR on unlabelled images, and without such images the loss is that of the labelled ones alone.

    Labels reach the encoder here, unlike `SimCLR`'s. With `num_classes` an online linear probe learns beside it, the
    gradient stopped, from the labelled images of all domains.

    Args:
        encoder: images (n, c, h, w) -> features (n, feature_dim), with an attribute `feature_dim`.
        projector: features -> projections (n, d).
        augment: `(images, keys) -> two views`, the same for all domains.
        loss: `(z (2, n, d), labels (n,), domains (n,)) -> scalar`, such as `cl_losses.CrossDomainLoss`.
        num_classes: Width of the online probe, or None for no probe.
        prototypes: For labelled rows whose class the batch holds in one domain only: means of the class in the others
            stand in, see `Prototypes`; None: such rows have their own other view alone. Made by `prototypes_of`.

    Raises:
        InputError: `prototypes` are given with a loss that has no `temperature`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        augment: TwoViewAugment,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        num_classes: int | None = None,
        prototypes: Prototypes | None = None,
    ) -> None:
        super().__init__(encoder, augment)
        if prototypes is not None and not hasattr(loss, "temperature"):
            raise InputError("`prototypes` need a `loss` with a `temperature`, such as CrossDomainLoss.")
        self.projector, self.contrast, self.prototypes = projector, loss, prototypes
        self.probe = None if num_classes is None else online_probe(encoder, num_classes)

    def forward(self, views: Tensor) -> SimCLREmbeddings:
        """One forward of both views of all domains."""
        return project(self.encoder(views), self.projector, self.probe)

    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast, plus the probe's cross entropy; logs the first as "loss", "partners", and "probe_top1".

        "partners" is the share of the labelled images of all processes whose class the batch holds in another domain
        too: what the loss has to work with.

        Raises:
            InputError: The data set is no `DomainDataset`, which gives class and domain of each image.
        """
        if labels is None or labels.ndim != 2:
            raise InputError("`dataset` must be a DomainDataset: CrossDomain needs class and domain of each image.")
        classes, domains = labels.unbind(1)
        labelled = classes >= 0
        z = torch.stack([embeddings.z_a, embeddings.z_b])
        loss = self.contrast(z, classes, domains)
        met = count_positives(classes, domains) > 0
        among = _per_process(labelled.sum())
        if self.prototypes is not None:
            rows, both = z.flatten(0, 1), (classes.repeat(2), domains.repeat(2))
            alone = (labelled & ~met).repeat(2)
            loss = loss + self.prototypes(rows, *both, alone, temperature=self.contrast.temperature)  # type: ignore[attr-defined]
            self.prototypes.update(rows.detach(), *both)
        metrics = {"loss": loss.detach(), "partners": (met & labelled).sum() / among}
        if self.probe is None:
            return loss, metrics
        logits = torch.cat([embeddings.logits_a, embeddings.logits_b])
        entropy, metrics["probe_top1"] = probe_loss(logits, labels, views=2, count=2 * among)
        return loss + entropy, metrics

    def health(self, embeddings: Any) -> dict[str, Tensor]:
        """Spread and uniformity of the projections of both views.

        Not their rank, nor how far the views of an image are apart: with few classes, that each becomes a point is the
        aim, and no illness.
        """
        figures = contrast_figures(embeddings.z_a, embeddings.z_b, loss=None)
        return {name: figures[name] for name in ("spread", "uniformity")}


def prototypes_of(dataset: DomainDataset, width: int, *, decay: float = 0.9) -> Prototypes:
    """Prototypes for the domains and classes of a data set, none seen yet.

    Args:
        dataset: Images of several domains.
        width: Of the projections, >= 1.
        decay: Weight of a prototype's old value where a batch has its class and domain, in [0, 1).

    Raises:
        InputError: An argument is out of its range.
    """
    if width < 1:
        raise InputError(f"`width` must be at least 1, got {width}.")
    if not 0 <= decay < 1:
        raise InputError(f"`decay` must be in [0, 1), got {decay}.")
    return Prototypes(len(dataset.domain_names), len(dataset.classes), width, decay=decay)


def _per_process(count: Tensor) -> Tensor:
    """Mean of a count over the processes, of at least 1 in all.

    Processes have unequally many labelled images: their sums over this, averaged as gradients and metrics are, are the
    mean over the images of all of them, which means of their own would not give; and 0, not NaN, if there are none.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return count.clamp_min(1)
    total = count.clone()
    distributed.all_reduce(total)
    return total.clamp_min(1).double() / distributed.get_world_size()  # a third in float32 would be 1e-8 off
