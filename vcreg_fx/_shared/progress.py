"""Show how far something is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """A progress bar. Used as a context.

    **Arguments:**

    - `what`: what is being done, in a word or two.
    - `total`: of how many steps; None if nobody knows.
    - `done`: how many were done before.
    - `shown`: whether to show it; None where the output is a terminal.
    - `console`: where; by default the standard error.
    - `passing`: whether it is taken away at the end.
    """

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
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=passing,
            disable=not (console.is_terminal if shown is None else shown),
        )
        self._bar = self._bars.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        """Begin to show it."""
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop the display."""
        self._bars.stop()

    def advance(self, what: str | None = None, note: str | None = None, steps: int = 1) -> None:
        """Move on, and say what is being done or what was found."""
        found: dict[str, Any] = {} if note is None else {"note": note}
        self._bars.update(self._bar, description=what, advance=steps, **found)
