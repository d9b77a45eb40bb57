"""Rows of one set against rows of another: the operator behind InfoNCE."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cl_losses._agree import Described, Processes, agree, gather_rows, world_size
from cl_losses._checks import check_candidates, check_finite, check_queries, check_reduction, check_temperature
from cl_losses._deferred import raise_what_arrived
from cl_losses._log_sum_exp import Arithmetic, Sums, add_gradients, choose, log_sums
from cl_losses._operator import operator
from cl_losses._precision import wider, widest, without_autocast
from cl_losses._reduce import reduce_rows, share, weigh_rows
from cl_losses._tiles import Band, Excluded
from cl_losses._unit import through_norm_, unit_rows


class _Batch(NamedTuple):
    """Unit rows: queries and keys of all processes, (n, d), and this process's additional negatives, (k, d)."""

    queries: Tensor
    keys: Tensor
    negatives: Tensor
    processes: Processes

    def own(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of all; the very tensor where there are no others."""
        return rows if self.processes.world == 1 else rows[self.processes.rows(1)]

    def excluded(self, *, decoupled: bool) -> Excluded:
        """What is no candidate of this process's rows: the positive, if decoupled."""
        return Excluded((Band(0, self.processes.images, self.processes.rows(1).start),) if decoupled else ())


def _unit_dtype(dtype: torch.dtype, temperature: float, learnt: Tensor | None) -> torch.dtype:
    """A temperature that is learnt ends up small, and its value is not known where memory is planned: float64."""
    return choose(temperature, dtype).dtype if learnt is None else torch.float64


def _contrast(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    learnt: Tensor | None,
    temperature: float,
    decoupled: bool,
    symmetric: bool,
    reduction: str,
    gather: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss and what backward needs.

    That is unit rows of `_Batch`, norms of this process's queries, keys and negatives, logarithms of the sums of all
    queries and keys, shares, and the temperature. `learnt` is the temperature if it is a tensor.
    """
    units: list[Tensor] = []
    norms: list[Tensor] = []
    dtype = wider(query.dtype, key.dtype)

    def describe() -> Described:
        nonlocal temperature
        raise_what_arrived()
        if learnt is not None:
            # How to compute depends on it. The host reads it, and waits for a GPU to know it.
            temperature = float(learnt)
        check_temperature(temperature)
        check_reduction(reduction)
        check_queries(query, key, negatives)
        for name, rows in (("query", query), ("key", key), ("negatives", negatives)):
            part = query.new_empty(0, query.shape[1]) if rows is None else rows
            unit, norm = unit_rows(part, dtype=_unit_dtype(dtype, temperature, learnt))
            check_finite(norm, name=f"`{name}`")
            units.append(unit)
            norms.append(norm.to(dtype))
        settings = {
            "loss": "info_nce",
            "temperature": temperature,
            "learnt": learnt is not None,
            "negatives": 0 if negatives is None else negatives.shape[0],
            "symmetric": symmetric,
            "decoupled": decoupled,
            "reduction": reduction,
        }
        return Described(query.shape[0], query.shape[1], dtype, query.device, settings)

    with without_autocast(query):
        processes = agree(describe, gather=gather, name=group)
        check_candidates(processes.shares, negatives, both=symmetric)
        queries, keys, extra = units
        batch = _Batch(gather_rows(queries, processes), gather_rows(keys, processes), extra, processes)
        arithmetic = choose(temperature, batch.keys.dtype)
        rows, columns = _log_sums(batch, arithmetic, decoupled=decoupled, symmetric=symmetric)
        cosine = (queries * keys).sum(1) / temperature
        losses = rows * math.log(2) - cosine
        if symmetric:
            losses = (losses + columns * math.log(2) - cosine) / 2
        if reduction == "none":
            rows, columns = share(rows, columns, processes=processes, views=1)
        else:
            rows, columns, losses = share(rows, columns, losses, processes=processes, views=1)
            losses = reduce_rows(losses, reduction=reduction, counted=rows.shape[0])
    shares, used = (
        torch.tensor(processes.shares, device="cpu"),
        torch.tensor(temperature, dtype=torch.float64, device="cpu"),
    )
    query_norm, key_norm, negatives_norm = norms
    needed = (batch.queries, batch.keys, extra, query_norm, key_norm, negatives_norm, rows, columns, shares, used)
    return losses.to(dtype), *needed


def _log_sums(batch: _Batch, arithmetic: Arithmetic, *, decoupled: bool, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Logarithms of the sums of this process's queries and, if they are wanted, keys; those are +inf otherwise."""
    excluded = batch.excluded(decoupled=decoupled)
    alone = batch.processes.world == 1
    queries = batch.own(batch.queries)
    rows, columns = log_sums(queries, batch.keys, arithmetic=arithmetic, excluded=excluded, columns=symmetric and alone)
    if not alone:
        keys = batch.own(batch.keys)
        columns = torch.full_like(rows, math.inf)
        if symmetric:
            columns = log_sums(keys, batch.queries, arithmetic=arithmetic, excluded=excluded).rows
    if batch.negatives.shape[0] > 0:
        others = log_sums(queries, batch.negatives, arithmetic=arithmetic, excluded=Excluded()).rows
        # A query whose only key is its positive has no candidate among the keys, if that is left out.
        rows = torch.logaddexp2(rows.masked_fill(rows == math.inf, -math.inf), others)
    return rows, columns


def _contrast_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    negatives_norm: Tensor,
    rows: Tensor,
    columns: Tensor,
    shares: Tensor,
    temperature: Tensor,
    decoupled: bool,
    symmetric: bool,
    reduction: str,
    gather: bool,
    group: str,
    key_wanted: bool,
    negatives_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to this process's queries, keys and negatives, and to the temperature.

    No exchange, but of the losses' gradients without reduction: the sums of all queries and keys are known.
    """
    processes = Processes.of(shares.tolist(), gather=gather, name=group)
    batch, tau = _Batch(queries, keys, negatives, processes), temperature.item()
    own_queries, own_keys, at = batch.own(queries), batch.own(keys), processes.rows(1)
    dtype = query_norm.dtype
    d_query = torch.zeros_like(own_queries, dtype=dtype)
    d_key = torch.zeros_like(own_keys, dtype=dtype) if key_wanted else None
    d_negatives = torch.zeros_like(negatives, dtype=dtype) if negatives_wanted else None
    how, excluded = choose(tau, keys.dtype), batch.excluded(decoupled=decoupled)
    with without_autocast(queries):
        total = rows.shape[0]
        weights = weigh_rows(
            (grad / tau).to(keys.dtype), reduction=reduction, counted=total, rows=total, processes=processes, views=1
        )
        # Of a loss that is the mean of both directions, half is a query's and half a key's.
        g, h = (weights / 2, weights / 2) if symmetric else (weights, torch.zeros_like(weights))
        alone = processes.world == 1
        add_gradients(
            own_queries,
            keys,
            d_query,
            d_key if alone else None,
            sums=Sums(rows[at], columns),
            weights=(g[at], h),
            arithmetic=how,
            excluded=excluded,
        )
        if d_key is not None and not alone:
            sums, mirrored = Sums(columns[at], rows), (h[at], g)
            add_gradients(
                own_keys, queries, d_key, None, sums=sums, weights=mirrored, arithmetic=how, excluded=excluded
            )
        if negatives.shape[0] > 0:
            # Additional negatives pick nothing: they have no loss, as candidates without a sum have none.
            sums = Sums(rows[at], rows.new_full((negatives.shape[0],), math.inf))
            g_and_none = g[at], rows.new_zeros(negatives.shape[0])
            add_gradients(
                own_queries,
                negatives,
                d_query,
                d_negatives,
                sums=sums,
                weights=g_and_none,
                arithmetic=how,
                excluded=Excluded(),
            )
        both = (g + h)[at].unsqueeze(1).to(dtype)
        d_query.addcmul_(own_keys.to(dtype), both, value=-1)
        if d_key is not None:
            d_key.addcmul_(own_queries.to(dtype), both, value=-1)
        # The loss depends on cosine / temperature, so scaling all queries is like scaling 1 / temperature.
        d_temperature = -(own_queries * d_query).sum(dtype=torch.float64) / tau
    empty = d_query.new_empty(0)
    return (
        through_norm_(d_query, unit=own_queries, norm=query_norm),
        empty if d_key is None else through_norm_(d_key, unit=own_keys, norm=key_norm),
        empty.clone() if d_negatives is None else through_norm_(d_negatives, unit=negatives, norm=negatives_norm),
        d_temperature,
    )


def _shapes(  # type: ignore[no-untyped-def]
    query, key, negatives, learnt, temperature, decoupled, symmetric, reduction, gather, group
):
    check_temperature(temperature)
    n, d = query.shape
    world = world_size(gather=gather, name=group)
    total = n if world == 1 else torch.library.get_ctx().new_dynamic_size()
    extra = 0 if negatives is None else negatives.shape[0]
    dtype = wider(query.dtype, key.dtype)
    like = query.new_empty(0, dtype=_unit_dtype(dtype, temperature, learnt))
    loss = query.new_empty(n if reduction == "none" else (), dtype=dtype)
    units = [like.new_empty(rows, d) for rows in (total, total, extra)]
    norms = [loss.new_empty(rows) for rows in (n, n, extra)]
    sums = [like.new_empty(total, dtype=widest(like)) for _ in range(2)]
    return (
        loss,
        *units,
        *norms,
        *sums,
        torch.empty(world, dtype=torch.int64, device="cpu"),
        torch.empty((), dtype=torch.float64, device="cpu"),
    )


def _shapes_backward(grad, queries, keys, negatives, query_norm, key_norm, negatives_norm, *rest):  # type: ignore[no-untyped-def]
    *_, key_wanted, negatives_wanted = rest
    d = queries.shape[1]
    return (
        query_norm.new_empty(query_norm.shape[0], d),
        key_norm.new_empty(key_norm.shape[0], d) if key_wanted else query_norm.new_empty(0),
        negatives_norm.new_empty(negatives_norm.shape[0], d) if negatives_wanted else query_norm.new_empty(0),
        query_norm.new_empty((), dtype=torch.float64),
    )


def _save(ctx, inputs, needed):  # type: ignore[no-untyped-def]
    *tensors, _, decoupled, symmetric, reduction, gather, group = inputs
    ctx.save_for_backward(*needed)
    ctx.settings = decoupled, symmetric, reduction, gather, group
    ctx.like = [None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _gradients(ctx, grad, backward):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 10
    _, key, negatives, _ = wanted = ctx.needs_input_grad[:4]
    found = backward(grad, *ctx.saved_tensors, *ctx.settings, key, negatives)
    grads = [
        part.view(like[0]).to(device=like[2], dtype=like[1]) if wants and like is not None else None
        for part, like, wants in zip(found, ctx.like, wanted, strict=True)
    ]
    return (*grads, *(None,) * 6)


cross_contrast = operator(
    "cl_losses::cross_contrast",
    _contrast,
    _contrast_backward,
    fake_forward=_shapes,
    fake_backward=_shapes_backward,
    save=_save,
    gradients=_gradients,
)
