"""BYOL as a method of the loop."""

from typing import Any, NamedTuple

from cl_augment import TwoViewAugment
from cl_losses import byol_loss
from cl_models import EMA
from torch import Tensor, nn

from cl_train._contrast_figures import bootstrap_figures
from cl_train._two_views import TwoViewMethod, online_probe, probe_loss


class BYOLEmbeddings(NamedTuple):
    """Of both views, (n, d): the online network's projections p and predictions q, the target's projections z.

    Only the predictions lead to the loss, so only they, and `logits_a`, (n, classes), have a gradient.
    """

    p_a: Tensor
    p_b: Tensor
    q_a: Tensor
    q_b: Tensor
    z_a: Tensor
    z_b: Tensor
    logits_a: Tensor | None


class BYOL(TwoViewMethod):
    r"""BYOL: the online network predicts, from one view, what an average of its own past makes of the other view.

    With online encoder and projector $\theta$, predictor $q_\theta$ and target $\xi$, the loss of an image with views
    $v$ and $v'$ is

    $$2 - 2 \cos\bigl(q_\theta(z_\theta(v)), z_\xi(v')\bigr) + 2 - 2 \cos\bigl(q_\theta(z_\theta(v')), z_\xi(v)\bigr),$$

    0 to 8, its mean over the batch is minimised over $\theta$ alone, and after the optimiser's step $k$ of $K$
    $\xi \leftarrow \xi + (1 - \tau_k)(\theta - \xi)$ with $\tau_k = 1 - (1 - \tau)(\cos(\pi k / K) + 1) / 2$. No image
    is a negative of another. What keeps all images from being given one place are the predictor and the target:
    without either, BYOL collapses, and `pretrain` says so.

    As in the authors' code each view is a forward of its own, so that BatchNorm's statistics are of one view; the
    target normalises by its own batch; and the classifier sees the first view alone, the gradient stopped. It is a
    weight like others, adapted and decayed (SimCLR's is not). The target begins as a copy of the online network, where
    the authors' has random weights of its own; they find no difference.

    The loss of an image needs no other one: several processes and chunks give the gradient of the whole batch, but for
    BatchNorm's statistics. `batchnorm="global"` is refused, as layers are used more than once.

    Args:
        encoder: images (n, c, h, w) -> features (n, feature_dim), with an attribute `feature_dim`.
        projector: features -> projections (n, d), such as `cl_models.BYOLHead(feature_dim)`.
        predictor: projections -> predictions (n, d), such as `cl_models.BYOLHead(256)`.
        augment: `(images, keys) -> two views`, such as `cl_augment.BYOLAugment`.
        decay: tau, the weight of the target's old value at the first step, in [0, 1]. The paper: 0.97 for 40 epochs,
            0.99 for 100 and 300, 0.996 for 1000; 0.9995 for 1000 epochs at a batch of 512.
        num_classes: Width of the online classifier, or None for none.

    Attributes:
        target: The average, a `cl_models.EMA` of encoder and projector: it is in checkpoints, with its count of steps.

    Raises:
        ValueError: `decay` is out of its range, or a parameter has less than 32 bits.

    Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733, Algorithm 1, and the authors' code.
    """

    per_image = True

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        augment: TwoViewAugment,
        decay: float = 0.996,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(encoder, augment)
        self.projector, self.predictor = projector, predictor
        self.target = EMA(nn.Sequential(encoder, projector), decay)
        # not named "probe", which `lars_groups` would neither adapt nor decay
        self.classifier = None if num_classes is None else online_probe(encoder, num_classes)

    def forward(self, views: Tensor) -> BYOLEmbeddings:
        """Each view by itself through the online network, then through the target."""
        view_a, view_b = views.chunk(2)
        features = self.encoder(view_a)
        p_a, p_b = self.projector(features), self.projector(self.encoder(view_b))
        q_a, q_b = self.predictor(p_a), self.predictor(p_b)
        logits = None if self.classifier is None else self.classifier(features.detach())
        return BYOLEmbeddings(p_a.detach(), p_b.detach(), q_a, q_b, self.target(view_a), self.target(view_b), logits)

    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Both directions, plus the classifier's cross entropy; logs the first as "loss", and "probe_top1".

        Raises:
            InputError: There is a classifier but no labels.
        """
        loss = byol_loss(embeddings.q_a, embeddings.z_b) + byol_loss(embeddings.q_b, embeddings.z_a)
        metrics = {"loss": loss.detach()}
        if self.classifier is None:
            return loss, metrics
        entropy, metrics["probe_top1"] = probe_loss(embeddings.logits_a, labels, views=1)
        return loss + entropy, metrics

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target towards the online network."""
        self.target.total_steps = total_steps
        self.target.update(nn.Sequential(self.encoder, self.projector), step=step)

    def health(self, embeddings: Any) -> dict[str, Tensor]:
        """Figures of the online projections, and how far predictor and target are from doing nothing."""
        return bootstrap_figures(embeddings)
