"""What the loop needs to know of a method, and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Method(nn.Module, ABC):
    """A way of learning from images: views in, embeddings, loss. Abstract; `SimCLR`, `BYOL`, `CrossDomain` are.

    The step of `pretrain` (_step.py) is

        views = method.views(images, keys)       # no gradient, full precision
        embeddings = method(views)               # the only call with parameters: autocast, DDP
        loss, metrics = method.loss(embeddings, labels)   # full precision, negatives of all processes

    Attributes:
        encoder: What is taken home: images -> features.
        per_image: Whether the loss is a mean over images of which each needs no other. The chunks of a batch are then
            not embedded twice, and are as equal in size as they can be.
    """

    encoder: nn.Module
    per_image: bool = False

    @abstractmethod
    def keys(self, ids: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Random keys of images by their numbers: int64 (n,) -> int64 (n,)."""

    @property
    @abstractmethod
    def cut(self) -> Callable[[Tensor, Tensor], Any]:
        """`(images, keys) -> cuts`: the part of the augmentation that makes images equal in size.

        Called on one image at a time in worker processes; a property, so that the function alone travels there.
        """

    @abstractmethod
    def views(self, images: Any, keys: Tensor) -> Tensor:
        """Views of a batch (n, c, h, w), or of what `cut` made of its images: what `forward` takes."""

    def compiled_views(self, device: torch.device) -> Callable[[Any, Tensor], Tensor]:
        """What does the same as `views` on a device, by torch.compile; the method itself stays as it is."""
        return torch.compile(self.views)

    @abstractmethod
    def forward(self, views: Tensor) -> Any:
        """Embeddings of views: a tensor or a NamedTuple of tensors (or None) with one row per image, in their order.

        So that chunks of a batch can be joined: the loss may see more rows than a forward does.
        """

    @abstractmethod
    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to minimise and scalars for the log, detached, on the device; "loss" among them is what curves show.

        Labels (n,) are there when the data set has them; of a `DomainDataset` classes and domains, (n, 2).
        """

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after each step of the optimiser; none that a gradient scaler skipped.

        It is not known yet whether the step counts: what this does to parameters and buffers is taken back with it.

        Args:
            step: Number of the step, from 0.
            total_steps: Of the whole run.
        """

    def negatives(self, images: int) -> int | None:
        """How many negatives each row has when the loss sees so many images, or None where that says nothing.

        Where it is a number, the "loss" that `loss` logs is of the images of all processes, so it is the same on each;
        `pretrain` warns if it is not.
        """
        return None

    def health(self, embeddings: Any) -> dict[str, Tensor]:
        """Scalars for the log at the end of each epoch that tell whether the method is well, on the device.

        Over all processes, the same on each. What `pretrain` judges, where it is there: "spread", "effective_rank",
        "alignment", "entropy" and "accuracy", of what the first of the embeddings holds, as `SimCLR` gives them, and
        "predictor_change" and "target_lag", as `BYOL` does.

        Args:
            embeddings: What the last loss was given, without graph: with several parts of a step, those of the last;
                with chunks, those of all.
        """
        return {}
