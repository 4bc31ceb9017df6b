"""What the demo tells while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..surgery import Plan

if TYPE_CHECKING:
    from ._demo import DemoResult
    from ._gradient_check import SiteCheck


class Observer:
    """Is told what the demo does; this one says nothing. Override what is of interest."""

    def planned(self, plan: Plan) -> None:
        """The sites are known."""

    def started(self, task: str, steps: int) -> None:
        """A task of known length begins; the one before is over."""

    def advanced(self, loss: float | None = None) -> None:
        """One step of the current task is done."""

    def checked(self, checks: Sequence[SiteCheck]) -> None:
        """The gradients have been compared."""

    def measured(self, result: DemoResult) -> None:
        """Both models are trained and measured."""

    def written(self, files: Sequence[Path]) -> None:
        """The report lies on the disk."""
