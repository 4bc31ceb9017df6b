"""What the demo prints while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .._shared.progress import Progress
from ..experiments import COLUMNS, DemoResult, Observer, SiteCheck, conclusions, rows
from ..surgery import Plan
from ._console import print_sites, print_table, say, say_written


class ConsoleObserver(Observer):
    """Prints tables and, on a terminal, progress bars, which end with what is given here."""

    def __init__(self, bars: ExitStack) -> None:
        self._bars = bars
        self._bar: Progress | None = None

    def planned(self, plan: Plan) -> None:
        print_sites(plan)

    def started(self, task: str, steps: int) -> None:
        self._bars.close()
        self._bar = self._bars.enter_context(Progress(task, steps))

    def advanced(self, loss: float | None = None) -> None:
        if self._bar is not None:
            self._bar.advance(note=None if loss is None else f"loss {loss:.3f}")

    def checked(self, checks: Sequence[SiteCheck]) -> None:
        say("\nInjected gradient against the naive loss by autograd")
        errors = [(check.name, f"{check.float32:.1e}", f"{check.float64:.1e}") for check in checks]
        numbers = ("float32", "float64")
        print_table(("site", *numbers), errors, right=numbers)
        say(
            f"Largest relative error of {len(checks)} sites: "
            f"{max(check.float32 for check in checks):.1e} in float32, "
            f"{max(check.float64 for check in checks):.1e} in float64.\n"
        )

    def measured(self, result: DemoResult) -> None:
        self._bars.close()
        print_table(COLUMNS, rows(result), right=COLUMNS[1:])
        for sentence in conclusions(result):
            say(f"• {sentence}")
        say("")

    def written(self, files: Sequence[Path]) -> None:
        say_written(*files)
