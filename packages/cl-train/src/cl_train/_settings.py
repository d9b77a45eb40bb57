"""The numbers and choices of a run, checked before anything happens."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from cl_train._checkpoint_folder import Saving
from cl_train._errors import InputError
from cl_train._finite import OnNonfinite
from cl_train._norms import Statistics
from cl_train._plan import Plan, check_whole
from cl_train._step import Compile
from cl_train._watch import Health

ChunkSize = int | Literal["auto"] | None


@dataclass(frozen=True)
class Settings:
    """What `pretrain` was asked for, besides method, data, optimiser and folder; its docstring says what each means.

    Raises:
        InputError: One is out of its range.
    """

    epochs: int
    chunk_size: ChunkSize
    accumulate: int
    batchnorm: Statistics
    warmup_epochs: float
    workers: int | None
    compile: Compile
    max_steps: int | None
    log_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    keep_every: int | None
    keep_best: str | None
    on_nonfinite: OnNonfinite
    max_bad_images: float
    health: Health

    def __post_init__(self) -> None:
        least = {"workers": 0, "warmup_epochs": 0, "keep_checkpoints": 2} | dict.fromkeys(
            ("epochs", "chunk_size", "accumulate", "max_steps", "log_every", "checkpoint_every", "keep_every"), 1
        )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in least and field.name != "warmup_epochs" and not isinstance(value, str | None):
                check_whole(field.name, value)
            if field.name in least and isinstance(value, int | float) and value < least[field.name]:
                raise InputError(f"`{field.name}` must be at least {least[field.name]}, got {value}.")
        choices = {"batchnorm": Statistics, "compile": Compile, "on_nonfinite": OnNonfinite, "health": Health}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(map(repr, get_args(kind)))
                raise InputError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        if isinstance(self.chunk_size, str) and self.chunk_size != "auto":
            raise InputError(f"`chunk_size` must be a number, 'auto' or None, got {self.chunk_size!r}.")
        if not self.warmup_epochs <= self.epochs:
            raise InputError(f"`warmup_epochs` must be at most `epochs`, {self.epochs}, got {self.warmup_epochs:g}.")
        if not 0 <= self.max_bad_images < 1:
            raise InputError(f"`max_bad_images` must be in [0, 1), got {self.max_bad_images}.")

    def check_split(self, plan: Plan) -> None:
        """Raise unless a process's share of a batch can be split as asked."""
        if self.accumulate > 1 and (self.chunk_size is not None or self.batchnorm == "global"):
            raise InputError(
                f"`accumulate` must be 1 with `chunk_size` or `batchnorm` 'global', got {self.accumulate}: a step is "
                "made of parts with a loss each, or of chunks with one loss."
            )
        if self.compile == "all" and self.batchnorm == "global":
            raise InputError("`compile` must be 'no' or 'views' with `batchnorm` 'global', got 'all'.")
        if plan.share % self.accumulate:
            raise InputError(
                f"`accumulate` must divide a process's share of the batch, {plan.share}, got {self.accumulate}."
            )

    @property
    def saving(self) -> Saving:
        """When checkpoints are written, and which of them stay."""
        return Saving(
            every=self.checkpoint_every, keep=self.keep_checkpoints, keep_every=self.keep_every, best=self.keep_best
        )

    def identity(self, chunk_size: int | None) -> dict[str, Any]:
        """What must be equal for a run to go on from another's checkpoint."""
        return {
            "chunk_size": chunk_size,
            "accumulate": self.accumulate,
            "batchnorm": self.batchnorm,
            "warmup_epochs": self.warmup_epochs,
            "compile": self.compile,
        }
