"""How an ablation is run and shown; nothing of it changes a number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ._errors import AblationError
from ._record import Record


@dataclass(frozen=True)
class AblationOptions:
    """How an ablation is run and shown.

    **Arguments:**

    - `example_inputs`, `example_kwargs`: of one forward call, where `insert` cannot work them out.
    - `shard`: (i, n) runs the i-th of n equal shares of the trials, i from 1.
    - `retry_failed`: run trials again that failed in an earlier run.
    - `retries`: how often a trial is run again whose worker died.
    - `lost_after`: seconds after which a process that no longer renews its claim is given up.
    - `threads`: torch's CPU threads in each trial; by default left as they are. Sums depend on it
      in their last digits, so set it where numbers are to be equal on different machines.
    - `progress`: show progress; by default where the output is a terminal.
    - `on_record`: called with each record as it is finished.
    - `title`: the architecture, for the table.
    - `lower_is_better`: metrics of which the smallest value is the best.
    - `percent`: metrics shown as percentages.
    """

    example_inputs: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] | None = None
    shard: tuple[int, int] | None = None
    retry_failed: bool = False
    retries: int = 2
    lost_after: float = 60.0
    threads: int | None = None
    progress: bool | None = None
    on_record: Callable[[Record], object] | None = None
    title: str = ""
    lower_is_better: Collection[str] = ()
    percent: Collection[str] = ()

    def __post_init__(self) -> None:
        """Check what would fail late."""
        if self.shard is not None:
            i, n = self.shard
            if not 1 <= i <= n:
                raise AblationError(
                    f"shard {i}/{n} does not exist; shards go from 1/{n} to {n}/{n}."
                )
        if self.retries < 0 or not self.lost_after > 0:
            raise AblationError("retries must be at least 0 and lost_after positive.")
        for name in ("lower_is_better", "percent"):
            if isinstance(getattr(self, name), str):
                raise AblationError(f"{name} is a list of metrics, not a string.")
