"""Progress of a training: a bar on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines where the output is no terminal


class Meter:
    """Shows how far an epoch is, its loss, and the time left of the epoch and of the training.

    Parameters
    ----------
    name : of the epoch
    steps, first : steps of the epoch, and how many were taken before
    later : steps of all later epochs
    quiet : show nothing
    """

    def __init__(self, name: str, steps: int, first: int, later: int, quiet: bool) -> None:
        self.name, self.steps, self.first, self.later, self.quiet = name, steps, first, later, quiet
        self.taken = first
        self.start = self.said = time.monotonic()
        on_terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(desc=name, total=steps, initial=first, unit="step", leave=False, disable=not on_terminal)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    @property
    def due(self) -> bool:
        """Whether the next line is due, so that it is time to read the loss."""
        return not self.quiet and bool(self.bar.disable) and time.monotonic() - self.said >= EVERY

    def update(self, loss: float | None = None) -> None:
        """Count a step; `loss`, where it was just read, is shown."""
        self.taken += 1
        self.bar.update()
        if loss is None or self.quiet:
            return
        each = (time.monotonic() - self.start) / (self.taken - self.first)
        left = each * (self.steps - self.taken)
        whole = left + each * self.later
        self.bar.set_postfix_str(f"loss {loss:.4f}, training {duration(whole)} left")
        if self.due:
            self.said = time.monotonic()
            print(
                f"{self.name}, step {self.taken}/{self.steps}, loss {loss:.5f}, {duration(left)} left of the epoch, "
                f"{duration(whole)} of the training",
                flush=True,
            )


def duration(seconds: float) -> str:
    """Return a time as text: '40 s', '12 min', '3.1 h'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
