"""Show how far an ablation is."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from ._options import AblationOptions
from ._store import Store
from ._task import Task


class Progress:
    """A live display of finished, failed and remaining trials. Used as a context."""

    def __init__(self, tasks: Sequence[Task], options: AblationOptions) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        shown = console.is_terminal if options.progress is None else options.progress
        self._bars = Bars(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[failed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
            console=console,
            disable=not shown,
        )
        self._bar = self._bars.add_task("trials", total=len(tasks), failed="", last="")
        self._trials = {task.trial.id: task.trial for task in tasks}
        self._store = Store(tasks[0].store) if tasks else None
        self._on_record = options.on_record
        self._failed = 0

    def __enter__(self) -> Progress:
        """Begin to show progress."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display."""
        self._bars.stop()

    def finished(self, name: str) -> None:
        """Show that a trial is finished."""
        if self._store is None:
            return
        record = self._store.read(name)
        self._failed += record.status == "failed"
        first = next((f"{k} {v:.4g}" for k, v in record.metrics.items()), record.reason)
        self._bars.update(
            self._bar,
            advance=1,
            failed=f"{self._failed} failed" if self._failed else "",
            last=f"{self._trials[name]}: {first}".replace("[", r"\["),
        )
        if self._on_record is not None:
            self._on_record(record)
