"""Learning from a teacher as a method of the loop."""

from typing import Any, NamedTuple

import torch
from cl_losses import distillation_loss
from torch import Tensor, nn
from torch.nn import functional

from cl_train._frozen import Frozen
from cl_train._supervised import OneView, Transform


class DistilledLogits(NamedTuple):
    """Of the student and the teacher, (n, classes)."""

    student: Tensor
    teacher: Tensor


class Distilled(OneView):
    """Cross entropy of the student under its teacher, and, where wanted, under the labels that there are.

    Args:
        student: What is trained: views -> logits.
        transform: `(images, keys) -> views`; teacher and student see the same.
        teacher: views -> logits, in inference mode. Not trained, and no part of the method.
        temperature: tau > 0.
        label_weight: Weight of the labels, in [0, 1); the teacher has the rest.
        labelled: Share of the images that have a label, in (0, 1], where `label_weight` > 0.
    """

    def __init__(
        self,
        student: nn.Module,
        transform: Transform,
        *,
        teacher: nn.Module,
        temperature: float,
        label_weight: float,
        labelled: float,
    ) -> None:
        super().__init__(student, transform)
        self.teacher, self.temperature = Frozen(teacher), temperature
        self.label_weight, self.labelled = label_weight, labelled

    def forward(self, views: Tensor) -> DistilledLogits:
        """Logits of both."""
        return DistilledLogits(self.encoder(views), self.teacher(views))

    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; logs it as "loss", and "agreement", the share of views that both classify alike.

        The labels' term is summed over the rows that have one (not -1) and divided by how many of the batch may be
        expected to, so that processes with unequally many add up to what one would compute.
        """
        student, teacher = embeddings
        loss = (1 - self.label_weight) * distillation_loss(student, teacher, temperature=self.temperature)
        if self.label_weight > 0:
            assert labels is not None  # checked by `distill`
            told = functional.cross_entropy(student, labels, ignore_index=-1, reduction="sum")
            loss = loss + self.label_weight * told / (self.labelled * len(student))
        with torch.no_grad():
            agreement = (student.argmax(1) == teacher.argmax(1)).float().mean()
        return loss, {"loss": loss.detach(), "agreement": agreement}
