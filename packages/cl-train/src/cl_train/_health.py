"""What is wrong with a run, told from a few numbers: pure functions from figures to findings.

Every threshold lies between what was measured on runs that were well and on runs that were broken on purpose
(`benchmarks/health.py`), nearer to the broken ones: a false alarm costs trust, and a run that is ill stays so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LEAST_SPREAD = 0.1
_LEAST_RANK = 0.05
_LEAST_ALIGNMENT = 1e-3
_LEAST_CHANGE = 1e-9
_LEAST_DOUBT = 0.2
_LEAST_CHOICE = 1e-3
_GROWTH = 1.2  # from one look to the next: on its way out
_FIRST_STEPS = 100  # networks without normalisation before their end begin with a spread of 0.01
_MOST_LOSS_GAP = 1e-5  # float32 has 1e-7; projections that are nearly equal leave no more than 1e-4
_MOST_TWINS = 0.05


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: What it is called, the same at each look.
        figure: The number that shows it, and what is healthy.
        remedy: What to do.
    """

    name: str
    figure: str
    remedy: str


def judge(figures: Mapping[str, float], before: Mapping[str, float], *, images: int, width: int) -> list[Finding]:
    """What the figures of one look show; those that are missing show nothing.

    Args:
        figures: By name, as `contrast_figures` and `bootstrap_figures` give them, and the "step", as the log has it.
        before: Those of the look before, empty at the first.
        images: Images that the loss saw, over all processes, >= 2.
        width: Dimensions of the projections, >= 1.
    """
    found: list[Finding | None] = []
    if "predictor_change" in figures:
        found.append(no_predictor(figures["predictor_change"]))
    if "target_lag" in figures:
        found.append(no_target(figures["target_lag"], step=figures.get("step", 0)))
    spread = figures.get("spread", 1.0)
    if figures.get("step", 0) < _FIRST_STEPS:
        before = {}
    if spread < _LEAST_SPREAD:  # a point has no dimensions to count, and its views are as alike as all rows are
        found.append(complete_collapse(spread, before=before.get("spread")))
        return [finding for finding in found if finding is not None]
    if "effective_rank" in figures:
        rank = figures["effective_rank"]
        found.append(dimensional_collapse(rank, before=before.get("effective_rank"), images=images, width=width))
    if "alignment" in figures:
        found.append(identical_views(figures["alignment"]))
    if "entropy" in figures and "accuracy" in figures:
        found.append(temperature_too_low(figures["entropy"], figures["accuracy"]))
        found.append(temperature_too_high(figures["entropy"], figures["accuracy"], images=images))
    return [finding for finding in found if finding is not None]


def complete_collapse(spread: float, *, before: float | None) -> Finding | None:
    """All projections point in one direction, and do not leave it.

    Args:
        spread: Standard deviation of unit rows in units of 1 / sqrt(d): 1 spread evenly, 0 all equal.
        before: That of the look before, None in the first 100 steps, when nothing is said: a network may
            begin almost collapsed.
    """
    if not spread < _LEAST_SPREAD or _grows(spread, before):
        return None
    return Finding(
        "complete collapse",
        f"the projections' spread is {spread:.2g} (healthy: above {_LEAST_SPREAD})",
        "check what keeps images apart (negatives, or BYOL's predictor and target); lower the rate or the weight decay",
    )


def no_predictor(change: float) -> Finding | None:
    """The predictor gives back what it is given: then one place for all images is the best answer.

    Args:
        change: Mean squared distance of unit predictions and the unit projections they are made of, 0 to 4.
    """
    if not change < _LEAST_CHANGE:
        return None
    return Finding(
        "no predictor",
        f"the predictions are {change:.2g} from the projections they are made of (healthy: above {_LEAST_CHANGE:g})",
        "without a predictor that learns, BYOL collapses: give it one, such as cl_models.BYOLHead",
    )


def no_target(lag: float, *, step: float) -> Finding | None:
    """The target is the online network itself: it moves along instead of standing still.

    Args:
        lag: Mean squared distance of the target's and the online network's unit projections of a view, 0 to 4.
        step: Steps so far. They begin equal, and a warm-up begins at a rate of 0: in the first 100 nothing is said.
    """
    if step < _FIRST_STEPS or not lag < _LEAST_CHANGE:
        return None
    return Finding(
        "no target of its own",
        f"the target's projections are {lag:.2g} from the online network's (healthy: above {_LEAST_CHANGE:g})",
        "the target must be an average of earlier weights, with its gradient stopped: without, BYOL collapses",
    )


def dimensional_collapse(effective_rank: float, *, before: float | None, images: int, width: int) -> Finding | None:
    """Projections fill only a few of their dimensions, and do not spread to more.

    Args:
        effective_rank: 1 to min(d, 2n).
        before: That of the look before, None in the first 100 steps, when nothing is said.
        images: n.
        width: d.
    """
    most = min(width, 2 * images)
    least = _LEAST_RANK * most
    if not effective_rank < least or _grows(effective_rank, before):
        return None
    return Finding(
        "dimensional collapse",
        f"the projections' effective rank is {effective_rank:.3g} of {most} (healthy: above {least:.3g})",
        "strengthen the augmentation, or lower the learning rate or the weight decay",
    )


def identical_views(alignment: float) -> Finding | None:
    """Both views of an image are nearly the same, so that there is nothing to learn.

    Args:
        alignment: Mean squared distance of an image's two unit rows, 0 to 4.
    """
    if not alignment < _LEAST_ALIGNMENT:
        return None
    return Finding(
        "identical views",
        f"the two projections of an image are {alignment:.2g} apart (healthy: above {_LEAST_ALIGNMENT:g})",
        "both views are (nearly) the same: look at the augmentation, for instance with plot_views",
    )


def temperature_too_low(entropy: float, accuracy: float) -> Finding | None:
    r"""The softmax is far surer than it is right.

    A softmax that names its own doubt, $1 - \max_k p_k$ on average over the rows, as often as it errs has an entropy of
    at least $2 \log 2$ times the share of its errors (Hellman and Raviv, IEEE Trans. Inf. Theory 16, 1970). One with a
    temperature that is too low has far less.

    Args:
        entropy: Mean entropy in nats of the softmax over second views.
        accuracy: Share of first views whose nearest second view is their own.
    """
    doubt = 2 * math.log(2) * (1 - accuracy)
    if accuracy > 0.99 or not entropy < _LEAST_DOUBT * doubt:
        return None
    return Finding(
        "temperature too low",
        f"the softmax has an entropy of {entropy:.2g} nats and is wrong about {1 - accuracy:.2g} of the images "
        f"(healthy: above {_LEAST_DOUBT * doubt:.2g} nats)",
        "raise the temperature, usually 0.05 to 0.5",
    )


def temperature_too_high(entropy: float, accuracy: float, *, images: int) -> Finding | None:
    """The softmax hardly tells candidates apart that are told apart by their order.

    Args:
        entropy: Mean entropy in nats of the softmax over second views, at most log(images).
        accuracy: Share of first views whose nearest second view is their own.
        images: n.
    """
    share = entropy / math.log(images)
    if accuracy < 0.5 or not share > 1 - _LEAST_CHOICE:
        return None
    return Finding(
        "temperature too high",
        f"the softmax has {share:.6g} of the entropy of a blind choice, though it is right about {accuracy:.2g} of the "
        f"images (healthy: below {1 - _LEAST_CHOICE:g})",
        "lower the temperature, usually 0.05 to 0.5",
    )


def local_negatives(losses: Sequence[float]) -> Finding | None:
    """Each process contrasts with its own images only.

    Args:
        losses: Of the processes, as each computed it: equal where all of them see the same batch.
    """
    least, most = min(losses), max(losses)
    gap = (most - least) / max(abs(most), abs(least), 1e-12)
    if not gap > _MOST_LOSS_GAP:
        return None
    return Finding(
        "local negatives",
        f"the processes' losses are {least:.5g} to {most:.5g} (healthy: the same on all)",
        "each process has only its own images as negatives: gather those of all, as NTXentLoss(gather=True) does",
    )


def duplicated_images(share: float) -> Finding | None:
    """Many images are in the data set more than once: they are negatives of themselves.

    Args:
        share: Of the images, those with an exact twin, 0 to 1.
    """
    if not share > _MOST_TWINS:
        return None
    return Finding(
        "duplicated images",
        f"{share:.0%} of the images have an exact twin in the data set (healthy: below {_MOST_TWINS:.0%})",
        "remove the duplicates, each is contrasted with itself",
    )


def _grows(figure: float, before: float | None) -> bool:
    return before is None or figure > _GROWTH * before
