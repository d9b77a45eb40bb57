"""Learning from labels as a method of the loop: what linear evaluation and fine-tuning train by."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cl_augment import sample_keys
from torch import Tensor, nn
from torch.nn import functional

from cl_train._method import Method

Transform = Callable[[Tensor, Tensor], Tensor]


class OneView(Method):
    """A method that sees one view of each image. Abstract; `Supervised` and `Distilled` are.

    Args:
        network: What is trained: views -> logits.
        transform: `(images, keys) -> views`.
    """

    def __init__(self, network: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.encoder, self.transform = network, transform

    def keys(self, ids: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Keys of the views, by `cl_augment.sample_keys`."""
        return sample_keys(ids, seed=seed, epoch=epoch)

    @property
    def cut(self) -> Callable[[Tensor, Tensor], tuple[Tensor]]:
        """The whole view of an image, in a tuple: so `views` can tell it from an image."""
        return partial(_cut, self.transform)

    def views(self, images: Tensor | tuple[Tensor], keys: Tensor) -> Tensor:
        """(n, c, size, size)."""
        return self.transform(images, keys) if isinstance(images, Tensor) else images[0]


class Supervised(OneView):
    """Cross entropy of a classifier's logits; logs it as "loss", and "top1"."""

    def forward(self, views: Tensor) -> Tensor:
        """Logits."""
        return self.encoder(views)

    def loss(self, embeddings: Any, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy, and the share of the views that are classified correctly."""
        assert labels is not None  # checked by those who train with it
        loss = functional.cross_entropy(embeddings, labels)
        return loss, {"loss": loss.detach(), "top1": (embeddings.detach().argmax(1) == labels).float().mean()}


def _cut(transform: Transform, images: Tensor, keys: Tensor) -> tuple[Tensor]:
    return (transform(images, keys),)
