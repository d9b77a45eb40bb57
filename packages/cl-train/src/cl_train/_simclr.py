"""SimCLR as a method of the loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cl_augment import TwoViewAugment
from torch import Tensor, nn
from torch.nn import functional

from cl_train._contrast_figures import contrast_figures
from cl_train._two_views import TwoViewMethod, online_probe, probe_loss


class SimCLREmbeddings(NamedTuple):
    """Projections of both views, (n, d), and what the probe says of them, (n, classes), if there is one."""

    z_a: Tensor
    z_b: Tensor
    logits_a: Tensor | None
    logits_b: Tensor | None


def project(features: Tensor, projector: nn.Module, probe: nn.Module | None) -> SimCLREmbeddings:
    """What is made of the features of all first views, then of all second ones; the probe sends no gradient to them."""
    z_a, z_b = projector(features).chunk(2)
    logits = (None, None) if probe is None else probe(features.detach()).chunk(2)
    return SimCLREmbeddings(z_a, z_b, *logits)


class SimCLR(TwoViewMethod):
    """SimCLR: two views of each image, one forward of both, and a loss that pairs them.

    With `num_classes` an online linear probe learns to classify the features while they are learnt. It sees them with
    the gradient stopped, so labels do not reach the encoder; both views count, and its cross entropy is added to the
    loss (the authors' TensorFlow 2 code does so by default).

    Args:
        encoder: images (n, c, h, w) -> features (n, feature_dim), with an attribute `feature_dim`.
        projector: features -> projections (n, d); thrown away after training.
        augment: `(images, keys) -> two views`, such as `cl_augment.SimCLRAugment`.
        loss: `(z_a, z_b) -> scalar`, such as `cl_losses.NTXentLoss`.
        num_classes: Width of the online probe, or None for no probe.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        augment: TwoViewAugment,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(encoder, augment)
        self.projector, self.contrast = projector, loss
        self.probe = None if num_classes is None else online_probe(encoder, num_classes)

    def forward(self, views: Tensor) -> SimCLREmbeddings:
        """One forward of both views, so BatchNorm's statistics are over both, as in the authors' code."""
        return project(self.encoder(views), self.projector, self.probe)

    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast of the views plus the probe's cross entropy; logs the first as "loss", and "probe_top1".

        And "contrast_top1": of the process's first 256 images, the share whose first view has its own second view
        nearest among those of all the process's images.

        Raises:
            InputError: There is a probe but no labels.
        """
        contrast = self.contrast(embeddings.z_a, embeddings.z_b)
        metrics = {"loss": contrast.detach(), "contrast_top1": _accuracy(embeddings.z_a, embeddings.z_b)}
        if self.probe is None:
            return contrast, metrics
        logits = torch.cat([embeddings.logits_a, embeddings.logits_b])
        entropy, metrics["probe_top1"] = probe_loss(logits, labels, views=2)
        return contrast + entropy, metrics

    def negatives(self, images: int) -> int:
        """Both views of all other images."""
        return 2 * images - 2

    def health(self, embeddings: Any) -> dict[str, Tensor]:
        """Figures of the projections of both views; "entropy" among them if the loss is an `NTXentLoss`."""
        return contrast_figures(embeddings.z_a, embeddings.z_b, loss=self.contrast)


@torch.no_grad()
def _accuracy(z_a: Tensor, z_b: Tensor) -> Tensor:
    rows = min(256, len(z_a))  # a sample is enough to look at, and its similarities are a small matrix
    nearest = (functional.normalize(z_a[:rows]) @ functional.normalize(z_b).T).argmax(1)
    return (nearest == torch.arange(rows, device=nearest.device)).float().mean()
