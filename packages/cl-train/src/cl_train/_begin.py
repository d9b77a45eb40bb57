"""A run before its next step: everything that the loop needs, made from what was asked for and where it starts."""

import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from cl_train._finite import FiniteGuard
from cl_train._history import History
from cl_train._interrupt import StopRequest
from cl_train._launch import describe, on_main
from cl_train._method import Method
from cl_train._plan import Plan
from cl_train._progress import Progress
from cl_train._run import Run
from cl_train._schedule import warmup_cosine
from cl_train._settings import Settings
from cl_train._start import Start
from cl_train._step import Gradient
from cl_train._trackers import Tracker, Trackers
from cl_train._watch import Watch


def begin(
    method: Method,
    plan: Plan,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    settings: Settings,
    out: Path,
    start: Start,
    last: int,
    trackers: Collection[Tracker],
    *,
    visible: bool,
    title: str,
) -> Run:
    """The run, ready for its next step."""
    history = History(out / "metrics.jsonl", step=start.step, per_epoch=plan.steps_per_epoch)
    on_main(accelerator, history.begin)
    optimizer.zero_grad()  # of what the caller may have computed with it
    gradient = Gradient(
        method=method,
        model=model,
        accelerator=accelerator,
        views=method.views if settings.compile == "no" else method.compiled_views(accelerator.device),
        share=plan.share,
        chunk_size=start.chunk_size,
        accumulate=settings.accumulate,
        statistics=settings.batchnorm,
        seed=plan.seed,
    )
    warmup_steps = round(settings.warmup_epochs * plan.steps_per_epoch)
    factor = partial(warmup_cosine, warmup_steps=warmup_steps, total_steps=plan.total_steps)
    skipped, scaled = start.state.get("skipped_steps", 0), accelerator.scaler is not None
    run = Run(
        method=method,
        optimizer=optimizer,
        plan=plan,
        gradient=gradient,
        factor=factor,
        guard=FiniteGuard(
            method, optimizer.optimizer, on_nonfinite=settings.on_nonfinite, scaled=scaled, skipped=skipped
        ),
        stop=StopRequest(accelerator),
        watch=Watch(
            settings.health,
            method,
            gradient.seen,
            images=plan.batch_size // settings.accumulate,
            accelerator=accelerator,
        ),
        history=history,
        trackers=Trackers(
            trackers if accelerator.is_main_process and start.step < last else (),  # a finished run logs nothing
            out=out,
            config=start.identity,
            step=start.step,
            entries=history.entries,
        ),
        progress=Progress(total=last, done=start.step, title=title, visible=visible),
        accelerator=accelerator,
        out=out,
        saving=settings.saving,
        log_every=settings.log_every,
        max_bad_images=settings.max_bad_images,
        identity=start.identity,
        step=start.step,
        origin=start.origin,
        skipped_images=start.state.get("skipped_images", 0),
    )
    if start.state.get("step") == start.step:
        run.meter.restore(start.state["meter"], accelerator)
    if visible:
        print(_opening(run, settings), file=sys.stderr, flush=True)
    return run


def _opening(run: Run, settings: Settings) -> str:
    """One line: what runs where, on how many images, with how many negatives."""
    images = run.plan.batch_size // settings.accumulate
    negatives = run.method.negatives(images)
    parameters = sum(parameter.numel() for parameter in run.method.parameters() if parameter.requires_grad)
    words = [describe(run.accelerator), f"images/step={run.plan.batch_size}"]
    if run.gradient.chunk_size < run.plan.share:
        words.append(f"chunk={run.gradient.chunk_size}")
    if negatives is not None:
        words.append(f"negatives={negatives}")
    return " ".join([*words, f"parameters={parameters / 1e6:.3g}M", f"steps={run.progress.total}"])
