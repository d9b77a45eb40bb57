"""An encoder with a linear classifier on it."""

import torch
from cl_models import ProjectionHead
from torch import Tensor, nn


class Classifier(nn.Module):
    """Class scores of images: an encoder, the first layers of its projection head if wanted, and a linear layer.

    The linear layer begins at zero, as in the authors' code, and is computed in float32 also under autocast. It is
    called `probe`, so `lars_groups` neither decays nor adapts it, as they do.

    Args:
        encoder: views (n, c, h, w) -> features (n, feature_dim), with an attribute `feature_dim`. Not copied.
        classes: Number of classes, >= 2.
        projector: The projection head that was trained with the encoder; None: the classifier is on the features. Not
            copied, its later layers are not used.
        until: How many of its layers stay, from 0 to all. SimCLR v2 fine-tunes from the first of three.

    Attributes:
        classes: Number of classes.

    Shape:
        views (n, c, h, w) -> logits (n, classes), float32 (float64 if the classifier is).

    Raises:
        ValueError: An argument is out of its range, or the encoder has no `feature_dim`; on call, features are not as
            wide as that says.

    Chen et al., arXiv:2006.10029, section 2; arXiv:2002.05709, App. B.5.
    """

    def __init__(
        self, encoder: nn.Module, classes: int, *, projector: ProjectionHead | None = None, until: int = 1
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"`classes` must be at least 2, got {classes}.")
        width = getattr(encoder, "feature_dim", None)
        if not isinstance(width, int):
            raise ValueError(
                f"`encoder` must have its width as `feature_dim`, as cl_models.as_encoder gives it, got {width}."
            )
        self.encoder, self.classes, self.width = encoder, classes, width
        self.head = nn.Sequential() if projector is None else projector.first(until)
        self.probe = nn.Linear(width if projector is None else projector.dims[until], classes)
        nn.init.zeros_(self.probe.weight)
        nn.init.zeros_(self.probe.bias)

    def forward(self, views: Tensor) -> Tensor:
        """Logits of views."""
        features = self.encoder(views)
        if features.shape[1:] != (self.width,):
            raise ValueError(
                f"`encoder` must return features of shape (n, {self.width}), as its feature_dim says, got "
                f"{tuple(features.shape)}."
            )
        features = self.head(features)
        with torch.autocast(features.device.type, enabled=False):
            return self.probe(features.to(self.probe.weight.dtype))
