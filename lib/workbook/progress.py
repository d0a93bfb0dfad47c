"""How far a run of the notebooks is and how long it may still take: a live line on a terminal, else plain ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from threading import Event, Thread

from rich.progress import BarColumn, Progress as LiveLine, ProgressColumn, Task, TextColumn
from rich.text import Text

PLAIN_EVERY = 60.0  # seconds between two lines about the same notebook in a log


class Progress:
    """Shows notebook i of n, cell k of m, the time spent and an estimate of the time left.

    `known` holds the seconds that notebooks took in earlier runs; the others are estimated from the pace so far.
    """

    def __init__(self, names: Sequence[str], known: Mapping[str, float], live: bool | None = None) -> None:
        self.names, self.known = list(names), dict(known)
        self.live = sys.stdout.isatty() if live is None else live
        self.done, self.at, self.cells = 0, 0, 0
        self.name: str | None = None
        self.began = time.monotonic()

    def __enter__(self) -> Progress:
        if self.live:
            columns = TextColumn("{task.description}", markup=False), BarColumn(20), _Words(self._words)
            self.line = LiveLine(*columns, transient=True)
            self.task = self.line.add_task("")
            self.line.start()
        else:
            self.over = Event()
            Thread(target=self._speak, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.line.stop()
        else:
            self.over.set()

    def start(self, name: str, cells: int) -> None:
        """A notebook of `cells` code cells begins."""
        self.name, self.cells, self.at = name, cells, 0
        self.notebook_began = time.monotonic()
        if self.live:
            self._show()
        else:
            print(self._where(), self._words(), sep=", ", flush=True)

    def cell(self, number: int) -> None:
        """Code cell `number` (from 1) begins."""
        self.at = number
        if self.live:
            self._show()

    def finish(self) -> None:
        """The notebook is done."""
        spent = time.monotonic() - self.notebook_began
        self.known[self.name] = spent
        self.done += 1
        text = f"[{self.done}/{len(self.names)}] {self.name} done in {clock(spent)}"
        if self.live:
            self.line.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def seconds_left(self) -> float | None:
        """Estimate over this notebook and those after it; None as long as nothing is known."""
        spent = time.monotonic() - self.notebook_began
        here = self.known.get(self.name)
        if here is None and self.at > 1:
            here = spent * self.cells / (self.at - 1)
        lengths = self.known if here is None else {**self.known, self.name: here}
        if not lengths:
            return None
        typical = fmean(lengths.values())
        after = sum(lengths.get(name, typical) for name in self.names[self.done + 1 :])
        return max(lengths.get(self.name, typical) - spent, 0.0) + after

    def _where(self) -> str:
        return f"[{self.done + 1}/{len(self.names)}] {self.name}"

    def _show(self) -> None:
        self.line.update(self.task, description=self._where(), completed=max(self.at - 1, 0), total=self.cells)

    def _speak(self) -> None:
        """A line now and then, also while one cell takes long."""
        while not self.over.wait(PLAIN_EVERY):
            if self.name and self.done < len(self.names):
                print(self._where(), self._words(), sep=", ", flush=True)

    def _words(self) -> str:
        words = f"cell {self.at} of {self.cells}, {clock(time.monotonic() - self.began)} elapsed"
        left = self.seconds_left()
        return words if left is None else f"{words}, about {clock(left)} left"


class _Words(ProgressColumn):
    """A column whose text is asked for at every refresh, since time goes on within a cell."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__()
        self.words = words

    def render(self, task: Task) -> Text:
        return Text(self.words() if task.description else "")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
