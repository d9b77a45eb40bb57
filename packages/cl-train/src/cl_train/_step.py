"""The gradient of a step, for any method: of a whole batch at once, chunk by chunk, or batch by batch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cl_train._embeddings import backward, fields_of, gradients_of, join, like
from cl_train._global_norm import global_gradient
from cl_train._loader import Batch
from cl_train._method import Method
from cl_train._norms import Statistics, running_statistics_held
from cl_train._seen import Seen

Metrics = dict[str, Tensor]
Compile = Literal["no", "views", "all"]


@dataclass(frozen=True)
class Gradient:
    """Puts the gradient of a batch into `.grad` of a method's parameters.

    A batch that is larger than `chunk_size` goes through the network twice: without graph for the embeddings; then,
    when the loss has given the gradient of each embedding, once more chunk by chunk, with the same views, for the
    gradient of the parameters. Memory is that of a chunk, the loss is that of the batch (gradient caching, Gao et
    al., arXiv:2101.06983). The last chunk keeps its graph and is not computed twice. Where the loss of an image needs
    no other one, no chunk is: each has a loss of its own.

    Args:
        method: Makes the views and the loss.
        model: `method` as Accelerate prepared it: its forward runs in the run's precision, and its backward averages
            gradients over processes.
        accelerator: Scales the loss under fp16.
        views: `method.views`, perhaps compiled.
        share: Images of this process per step, where all can be read.
        chunk_size: Images of this process per forward, >= 1.
        accumulate: Parts of a batch with a loss each, >= 1; without chunks.
        statistics: Whose statistics BatchNorm uses.
        seed: Of random layers of the network.
        seen: Keeps what the loss saw, if it is wanted.
    """

    method: Method
    model: nn.Module
    accelerator: Accelerator
    views: Callable[[Any, Tensor], Tensor]
    share: int
    chunk_size: int
    accumulate: int
    statistics: Statistics
    seed: int
    seen: Seen = field(default_factory=Seen)

    def __call__(self, batch: Batch, step: int) -> Metrics:
        """Gradient of the loss of a batch; returns the method's metrics, and whether all was "finite"."""
        if self.statistics == "global":
            return global_gradient(self, batch, step)
        if self.accumulate > 1:
            parts = batch.split(self.share // self.accumulate, share=self.share)
            return self._of_parts(parts, [1 / len(parts)] * len(parts), step)
        if self.share > self.chunk_size:
            if self.method.per_image:
                # evenly, as BatchNorm refuses a last chunk of one image where each view has a forward of its own
                chunks = batch.split(self.chunk_size, share=self.share, evenly=True)
                weights = [len(chunk.keys) / len(batch.keys) for chunk in chunks]
                return self._of_parts(chunks, weights, step, seen_as_one=True)
            chunks = batch.split(self.chunk_size, share=self.share)
            return self._of_chunks(chunks, batch.labels, step)
        loss, metrics = self.loss(self.embed(batch, step, 0), batch.labels)
        self.accelerator.backward(loss)
        return metrics

    def _of_parts(self, parts: list[Batch], weights: list[float], step: int, *, seen_as_one: bool = False) -> Metrics:
        """Gradient of the weighted mean loss of batches that do not see each other."""
        found: list[Metrics] = []
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            with self.averaging(last=index == len(parts) - 1):
                embeddings = self.embed(part, step, index, moves=index == 0)
                loss, metrics = self.loss(embeddings, part.labels, adds=seen_as_one and index > 0)
                self.accelerator.backward(loss * weight)
            found.append(metrics)
        finite = torch.stack([metrics.pop("finite") for metrics in found]).all()
        means = {
            name: torch.stack([w * metrics[name] for w, metrics in zip(weights, found, strict=True)]).sum()
            for name in found[0]
        }
        return means | {"finite": finite}

    def _of_chunks(self, chunks: list[Batch], labels: Tensor | None, step: int) -> Metrics:
        *replayed, kept = chunks
        with self.averaging(last=False):
            with torch.no_grad():
                parts = [self.embed(chunk, step, i, moves=i == 0) for i, chunk in enumerate(replayed)]
            parts.append(self.embed(kept, step, len(replayed), moves=False))
            joined = join(parts)
            loss, metrics = self.loss(joined, labels)
            self.accelerator.backward(loss)
            gradients = gradients_of(joined, [len(chunk.keys) for chunk in chunks])
            backward(parts[-1], gradients[-1])
        for index, (chunk, gradient) in enumerate(zip(replayed, gradients, strict=False)):
            with self.averaging(last=index == len(replayed) - 1):
                backward(self.embed(chunk, step, index, moves=False), gradient)
        return metrics

    def averaging(self, *, last: bool) -> AbstractContextManager[Any]:
        """The last backward of a step averages over processes what all of them have added up."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def embed(self, batch: Batch, step: int, part: int, *, moves: bool = True, direct: bool = False) -> Any:
        """Embeddings of images.

        Args:
            batch: Of this process.
            step: Number of the step.
            part: Which part of the step's batch it is.
            moves: Whether BatchNorm's running statistics take notice.
            direct: Around what averages gradients over processes: for forwards without backward to the parameters.
        """
        batch = batch.to(self.accelerator.device)
        # So that random layers, and views without keys, are the same when a part comes again and in a run that goes on.
        torch.manual_seed(_mixed(self.seed, step, part, self.accelerator.process_index))
        with torch.no_grad():
            views = self.views(batch.images, batch.keys).contiguous(memory_format=torch.channels_last)
        with nullcontext() if moves else running_statistics_held(self.method):
            return self.method(views) if direct else self.model(views)

    def loss(self, embeddings: Any, labels: Tensor | None, *, adds: bool = False) -> tuple[Tensor, Metrics]:
        """The method's loss of embeddings of which none is infinite; "finite" among the metrics tells if one was."""
        fields = [field for field in fields_of(embeddings) if field is not None]
        good = [torch.linalg.vector_norm(field.detach().flatten(1), dim=1).isfinite() for field in fields]
        # A loss that refuses such rows would stop this process and leave the others waiting, or kill a CUDA context.
        safe = [
            torch.where(rows.view(-1, *[1] * (field.ndim - 1)), field, 1.0)
            for field, rows in zip(fields, good, strict=True)
        ]
        rest = iter(safe)
        embeddings = like(embeddings, [None if field is None else next(rest) for field in fields_of(embeddings)])
        loss, metrics = self.method.loss(embeddings, labels)
        self.seen.note(embeddings, metrics.get("loss"), adds=adds)
        finite = torch.stack([rows.all() for rows in good]).all() & loss.detach().isfinite()
        return loss, metrics | {"finite": finite}


def _mixed(*numbers: int) -> int:
    """A seed that depends on all of them."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
