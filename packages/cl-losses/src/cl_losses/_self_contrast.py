"""Every row against all other rows: the operator behind NT-Xent, SupCon and the cross-domain loss."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cl_losses._agree import Described, Processes, agree, gather_rows, world_size
from cl_losses._checks import check_finite, check_images, check_reduction, check_temperature, check_views
from cl_losses._deferred import raise_what_arrived, require
from cl_losses._log_sum_exp import Sums, add_gradients, choose, log_sums
from cl_losses._operator import operator
from cl_losses._positives import (
    Groups,
    count_positives_of_rows,
    group_rows,
    positive_products,
    subtract_positives_,
)
from cl_losses._precision import wider, widest, without_autocast
from cl_losses._reduce import reduce_rows, share, weigh_rows
from cl_losses._tiles import Band, Excluded, kept_numbers
from cl_losses._unit import through_norm_, unit_rows


class _Batch(NamedTuple):
    """The unit rows of all processes, (M, d), and what is known of them.

    A process's rows are the first views of its images, then their second views, and so on.
    """

    unit: Tensor
    processes: Processes
    views: int
    groups: Groups | None

    @property
    def at(self) -> slice:
        """This process's rows."""
        return self.processes.rows(self.views)

    @property
    def own(self) -> Tensor:
        """This process's rows; the very tensor of all rows where there are no others."""
        return self.unit if self.processes.world == 1 else self.unit[self.at]

    def excluded(self, *, decoupled: bool) -> Excluded:
        """What is no candidate: the row itself; its other views if decoupled; its cell but for its other views."""
        start, images = self.at.start, self.processes.images
        itself = (Band(0, images * self.views, start),)
        other_views = tuple(
            Band(a * images, (a + 1) * images, start + (b - a) * images)
            for a in range(self.views)
            for b in range(self.views)
            if a != b
        )
        if decoupled:
            return Excluded(itself + other_views)
        if self.groups is None:
            return Excluded(itself)
        cell, side = (None if numbers is None else numbers.int() for numbers in self.groups[2:])
        return Excluded(
            itself,
            None if cell is None else cell[self.at],
            cell,
            other_views,
            None if side is None else side[self.at],
            side,
        )

    def positives(self) -> Tensor | None:
        """The number of positives of every row, (M,); None where every row has one, the other of two views."""
        return None if self.groups is None else count_positives_of_rows(self.groups).to(self.unit.dtype)

    def cosines(self, count: Tensor | None) -> Tensor:
        """For this process's rows, the mean cosine with their positives; 0 without positives."""
        if self.groups is not None and count is not None:
            return positive_products(self.unit, self.groups, at=self.at) / count[self.at].clamp_min(1)
        first, second = self.own.chunk(2)
        cosine = (first * second).sum(1)
        return torch.cat([cosine, cosine])

    def subtract_positives_(self, d_own: Tensor, weights: Tensor) -> None:
        """A row's positives pull at it for its own loss and, as it is one of theirs, for their losses."""
        if self.groups is not None:
            subtract_positives_(d_own, self.unit, self.groups, weights=weights, at=self.at)
            return
        first, second = self.own.to(d_own.dtype).chunk(2)
        both = weights[self.at].view(2, -1, 1).sum(0).to(d_own.dtype)
        d_first, d_second = d_own.chunk(2)
        d_first.addcmul_(second, both, value=-1)
        d_second.addcmul_(first, both, value=-1)


class _Settings(NamedTuple):
    """The hyperparameters."""

    temperature: float
    decoupled: bool
    ignore: bool
    apart: bool
    reduction: str


def _contrast(
    z: Tensor,
    other: Tensor | None,
    labels: Tensor | None,
    domains: Tensor | None,
    temperature: float,
    decoupled: bool,
    ignore: bool,
    apart: bool,
    reduction: str,
    gather: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, and what backward needs: unit rows, norms, logarithms of sums, groups, kept tiles, shares.

    `z` and `other`, (n, d), are two views; or `z` alone is (n, d) or (views, n, d). With `domains`, the rows of a row's
    class and domain are no candidates if `ignore`, else its positives; and an image without label and those of other
    domains are no candidates of each other if `apart`.
    """
    settings = _Settings(temperature, decoupled, ignore, apart, reduction)
    views = _views(z, other)
    dtype = wider(*(part.dtype for part in _parts(z, other)))
    name = "`z`" if other is None else "`z_a` and `z_b`"
    rows: list[Tensor] = []

    def describe() -> Described:
        raise_what_arrived()
        check_temperature(temperature)
        check_reduction(reduction)
        check_views(z, other, labels=labels, domains=domains)
        parts = (part.flatten(0, -2) for part in _parts(z, other))
        rows.extend(unit_rows(*parts, dtype=choose(temperature, dtype).dtype))
        check_finite(rows[1], name=name)
        tensors = {"two_views": other is not None, "labels": labels is not None, "domains": domains is not None}
        return Described(z.shape[-2], z.shape[-1], dtype, z.device, settings._asdict() | tensors | {"views": views})

    with without_autocast(z):
        processes = agree(describe, gather=gather, name=group)
        check_images(processes.shares, name=name)
        unit, norm = rows
        groups = None if labels is None else _groups(labels, domains, settings, processes=processes, views=views)
        batch = _Batch(gather_rows(unit, processes, views=views), processes, views, groups)
        loss, sums, kept = _forward(batch, settings)
    stacked = unit.new_empty(0, batch.unit.shape[0], dtype=torch.int64) if groups is None else groups.stack()
    return loss.to(dtype), batch.unit, norm.to(dtype), sums, stacked, kept, torch.tensor(processes.shares, device="cpu")


def _parts(z: Tensor, other: Tensor | None) -> tuple[Tensor, ...]:
    return (z,) if other is None else (z, other)


def _views(z: Tensor, other: Tensor | None) -> int:
    return 2 if other is not None else z.shape[0] if z.ndim == 3 else 1


def _groups(labels: Tensor, domains: Tensor | None, settings: _Settings, *, processes: Processes, views: int) -> Groups:
    labels = gather_rows(labels.long(), processes)
    if domains is not None:
        domains = gather_rows(domains.long(), processes)
        several = (domains != domains[:1]).any()
        require(several, "`domains` must hold at least 2 different domains over the whole batch, got 1.")
    return group_rows(
        labels, domains, shares=processes.shares, views=views, cells=settings.ignore, sides=settings.apart
    )


def _forward(batch: _Batch, settings: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the logarithms of all rows' sums, and the kept tiles."""
    own, arithmetic = batch.own, choose(settings.temperature, batch.unit.dtype)
    kept = own.new_empty(kept_numbers(own.shape[0], own) if batch.processes.world == 1 else 0)
    excluded = batch.excluded(decoupled=settings.decoupled)
    sums = log_sums(own, batch.unit, arithmetic=arithmetic, excluded=excluded, kept=kept).rows
    count = batch.positives()
    losses = sums * math.log(2) - batch.cosines(count) / settings.temperature
    if count is not None:
        losses = losses.masked_fill(count[batch.at] == 0, 0)
    if settings.reduction == "none":
        (sums,) = share(sums, processes=batch.processes, views=batch.views)
        return losses, sums, kept
    sums, losses = share(sums, losses, processes=batch.processes, views=batch.views)
    return reduce_rows(losses, reduction=settings.reduction, counted=_counted(batch, count)), sums, kept


def _counted(batch: _Batch, count: Tensor | None) -> Tensor | int:
    """The number of rows of all processes that have a positive; 1 if there is none, so that the mean is 0."""
    return batch.unit.shape[0] if count is None else (count > 0).sum().clamp_min(1)


def _contrast_backward(
    grad: Tensor,
    unit: Tensor,
    norm: Tensor,
    sums: Tensor,
    groups: Tensor,
    kept: Tensor,
    shares: Tensor,
    views: int,
    temperature: float,
    decoupled: bool,
    ignore: bool,
    apart: bool,
    reduction: str,
    gather: bool,
    group: str,
) -> Tensor:
    """The gradient with respect to this process's rows before they were normalised, (views * n, d).

    No exchange, but of the losses' gradients without reduction: the sums of all rows are known, so a process
    computes all that its rows do to the losses of all processes.
    """
    processes = Processes.of(shares.tolist(), gather=gather, name=group)
    batch = _Batch(unit, processes, views, Groups.unstack(groups, cells=ignore) if len(groups) else None)
    with without_autocast(unit):
        count, own = batch.positives(), batch.own
        weights = weigh_rows(
            (grad / temperature).to(unit.dtype),
            reduction=reduction,
            counted=_counted(batch, count),
            rows=unit.shape[0],
            processes=processes,
            views=views,
        )
        if count is not None:
            weights = weights.masked_fill(count == 0, 0)
        d_own = torch.zeros_like(own, dtype=norm.dtype)
        add_gradients(
            own,
            unit,
            d_own,
            None,
            sums=Sums(sums[batch.at], sums),
            weights=(weights[batch.at], weights),
            arithmetic=choose(temperature, unit.dtype),
            excluded=batch.excluded(decoupled=decoupled),
            kept=kept,
        )
        batch.subtract_positives_(d_own, weights if count is None else weights / count.clamp_min(1))
        return through_norm_(d_own, unit=own, norm=norm)


def _shapes(z, other, labels, domains, temperature, decoupled, ignore, apart, reduction, gather, group):  # type: ignore[no-untyped-def]
    check_temperature(temperature)
    rows = math.prod(z.shape[:-1]) * (1 if other is None else 2)
    world = world_size(gather=gather, name=group)
    total = rows if world == 1 else torch.library.get_ctx().new_dynamic_size()
    dtype = wider(*(part.dtype for part in _parts(z, other)))
    unit = z.new_empty(total, z.shape[-1], dtype=choose(temperature, dtype).dtype)
    loss = z.new_empty(rows if reduction == "none" else (), dtype=dtype)
    kinds = 0 if labels is None else 2 if domains is None else 2 + ignore + apart
    groups = z.new_empty(kinds, total, dtype=torch.int64)
    kept = unit.new_empty(kept_numbers(rows, unit) if world == 1 else 0)
    shares = torch.empty(world, dtype=torch.int64, device="cpu")
    return loss, unit, z.new_empty(rows, dtype=dtype), unit.new_empty(total, dtype=widest(unit)), groups, kept, shares


def _shapes_backward(grad, unit, norm, *_):  # type: ignore[no-untyped-def]
    return norm.new_empty(norm.shape[0], unit.shape[1])


def _save(ctx, inputs, needed):  # type: ignore[no-untyped-def]
    z, other, _, _, *ctx.settings = inputs
    ctx.save_for_backward(*needed)
    ctx.shapes = [(part.shape, part.dtype) for part in _parts(z, other)]
    ctx.views = _views(z, other)


def _gradients(ctx, grad, backward):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 11
    dz = backward(grad, *ctx.saved_tensors, ctx.views, *ctx.settings)
    parts = dz.chunk(len(ctx.shapes))
    grads = [part.view(shape).to(dtype) for part, (shape, dtype) in zip(parts, ctx.shapes, strict=True)]
    return (*grads, *(None,) * (11 - len(grads)))


self_contrast = operator(
    "cl_losses::self_contrast",
    _contrast,
    _contrast_backward,
    fake_forward=_shapes,
    fake_backward=_shapes_backward,
    save=_save,
    gradients=_gradients,
)
