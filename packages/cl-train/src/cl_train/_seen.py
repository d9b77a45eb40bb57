"""What the loss of a step saw, kept for a look at it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_train._embeddings import fields_of, like


@dataclass
class Seen:
    """The embeddings and the value of one loss of this process, without graph.

    Attributes:
        wanted: Whether the next loss is to be kept; otherwise nothing is, so that no step needs more memory but the
            last of an epoch.
        embeddings: All that the loss was given: a share of the batch, joined if it was in chunks (which may have a loss
            each, where images need no others), or of accumulated parts the last one.
        loss: What the method logs as "loss", as this process has it.
    """

    wanted: bool = False
    embeddings: Any = None
    loss: Tensor | None = None

    def note(self, embeddings: Any, loss: Tensor | None, *, adds: bool = False) -> None:
        """Keep these if they are wanted; `adds` puts them behind those that are kept, which are of the same batch."""
        if self.wanted:
            fields = [None if field is None else field.detach() for field in fields_of(embeddings)]
            if adds:
                pairs = zip(fields_of(self.embeddings), fields, strict=True)
                fields = [None if a is None or b is None else torch.cat([a, b]) for a, b in pairs]
            self.embeddings, self.loss = like(embeddings, fields), loss

    def forget(self) -> None:
        """Free the memory."""
        self.wanted, self.embeddings, self.loss = False, None, None
