"""Show how far training is."""

from __future__ import annotations

from types import TracebackType


class Bar:
    """A progress bar over the steps of a run. Used as a context.

    **Arguments:**

    - `epochs`, `steps`: of the run, and of each epoch.
    - `done`: epochs that were trained before.
    - `shown`: whether to show it; None where the output is a terminal.
    """

    def __init__(self, epochs: int, steps: int, done: int, shown: bool | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._epochs = epochs
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
            console=console,
            transient=True,
            disable=not (console.is_terminal if shown is None else shown),
        )
        self._bar = self._bars.add_task("", total=epochs * steps, completed=done * steps, last="")

    def __enter__(self) -> Bar:
        """Begin to show it."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._bars.stop()

    def step(self, epoch: int) -> None:
        """Move on by a step of an epoch."""
        self._bars.update(self._bar, advance=1, description=f"epoch {epoch}/{self._epochs}")

    def finished(self, numbers: dict[str, float]) -> None:
        """Show the numbers of a finished epoch."""
        self._bars.update(self._bar, last=f"loss {numbers['loss']:.4g}")
