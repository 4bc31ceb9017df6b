"""Show how far something is."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_FIRST, _NEXT = 3.0, 10.0  # seconds to the first line, and at least that many to each other


class Progress:
    """A progress bar; where the output is no terminal, a line every so often. Used as a context.

    The first line comes after three seconds, the others after ten or more, fewer and fewer.
    Within another one it shows nothing.

    **Arguments:**

    - `what`: what is being done, in a word or two.
    - `total`: of how many steps; None if nobody knows.
    - `done`: how many were done before.
    - `shown`: whether to show it; a bar in any case if True.
    - `console`: where; by default the standard error.
    - `passing`: whether the bar is taken away at the end.
    """

    _outermost: Progress | None = None

    def __init__(
        self,
        what: str = "",
        total: int | None = None,
        *,
        done: int = 0,
        shown: bool | None = None,
        console: Console | None = None,
        passing: bool = False,
    ) -> None:
        from rich import progress
        from rich.console import Console

        console = console or Console(stderr=True)
        bar = console.is_terminal if shown is None else shown
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=passing,
            disable=not bar,
        )
        self._bar = self._bars.add_task(what, total=total, completed=done, note="")
        self._console = console
        self._ended = threading.Event()
        self._writer = None
        if shown is None and not bar:
            self._writer = threading.Thread(target=self._write_lines, daemon=True)

    def __enter__(self) -> Progress:
        """Begin to show it."""
        if Progress._outermost is None:
            Progress._outermost = self
            self._bars.start()
            if self._writer is not None:
                self._writer.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop the display."""
        if Progress._outermost is self:
            Progress._outermost = None
            self._bars.stop()
            self._ended.set()
            if self._writer is not None:
                self._writer.join()

    def advance(self, what: str | None = None, note: str | None = None, steps: int = 1) -> None:
        """Move on, and say what is being done or what was found."""
        found: dict[str, Any] = {} if note is None else {"note": note}
        self._bars.update(self._bar, description=what, advance=steps, **found)

    def reach(self, done: int, total: int) -> None:
        """Say how many of how many are done."""
        self._bars.update(self._bar, completed=done, total=total)

    def _write_lines(self) -> None:
        began = time.monotonic()
        pause = _FIRST
        while not self._ended.wait(pause):
            seconds = time.monotonic() - began
            task = self._bars.tasks[0]
            count = f" {task.completed:g}" + (f" of {task.total:g}" if task.total else "")
            counted = count if task.total or task.completed else ""
            note = f", {task.fields['note']}" if task.fields["note"] else ""
            line = f"{task.description}:{counted} after {seconds:.0f} s{note}"
            self._console.print(line, markup=False, highlight=False, emoji=False)
            pause = max(_NEXT, seconds / 4)
