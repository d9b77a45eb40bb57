"""What a run that is ill says: a warning, or the error that ends it."""

from cl_train._health import Finding


class HealthWarning(UserWarning):
    """`pretrain` has found that a run is ill; the message names the number and what to do.

    Attributes:
        finding: What is wrong, such as "complete collapse".
    """

    def __init__(self, finding: Finding, *, epoch: float) -> None:
        super().__init__(_message(finding, epoch=epoch))
        self.finding = finding.name


class UnhealthyRun(RuntimeError):  # noqa: N818 - as Interrupted: what has happened, not a fault of the program
    """`pretrain(health="stop")` has ended a run that is ill, on all processes, and has saved what there was to save.

    Attributes:
        finding: What is wrong, such as "complete collapse".
        step: Steps taken, which the newest checkpoint holds.
    """

    def __init__(self, finding: Finding, *, step: int, epoch: float) -> None:
        super().__init__(_message(finding, epoch=epoch))
        self.finding, self.step = finding.name, step


def _message(finding: Finding, *, epoch: float) -> str:
    return f"health: {finding.name}: {finding.figure} at epoch {epoch:g}; {finding.remedy}."
