"""What a person sees of a running loop: a bar on a terminal, now and then a line in a file."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A progress bar, or plain lines where standard error is no terminal.

    Args:
        total: Steps of the whole run.
        done: Steps already taken.
        title: What is running.
        visible: False shows nothing, as on every process but the main one.
    """

    def __init__(self, *, total: int, done: int, title: str, visible: bool) -> None:
        self.total, self.done, self.title = total, done, title
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=title, disable=not (visible and on_terminal), unit="step")
        self.lines = visible and not on_terminal
        self.first, self.began = done, time.monotonic()
        self.last_line = self.began

    def step(self) -> None:
        """Count one step."""
        self.done += 1
        self.bar.update()

    def tell(self, figures: Mapping[str, float]) -> None:
        """Show the newest figures; as a line, with the time left, at most every 15 seconds, and at the end."""
        words = [f"{name} {value:.4g}" for name, value in figures.items() if name != "images_per_second"]
        if "images_per_second" in figures:
            words.append(f"{figures['images_per_second']:.4g} images/s")
        text = ", ".join(words)
        self.bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self.lines and (now - self.last_line > _SECONDS_BETWEEN_LINES or self.done == self.total):
            print(
                f"{self.title}: step {self.done}/{self.total}, {text}, {self._time(now)}", file=sys.stderr, flush=True
            )
            self.last_line = now

    def close(self) -> None:
        """Leave the bar on the screen."""
        self.bar.close()

    def _time(self, now: float) -> str:
        """How long it will take, as long per step as since this start, or has taken."""
        took = now - self.began
        if self.done == self.total:
            return f"took {tqdm.format_interval(took)}"
        return f"{tqdm.format_interval(took / (self.done - self.first) * (self.total - self.done))} left"
