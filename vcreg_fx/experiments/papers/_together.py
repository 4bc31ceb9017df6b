"""One experiment in the processes that ``torchrun`` started.

The first process runs the experiment: it reads and writes the store, searches and measures. Before
it trains, it tells the others which trial it is, and they train along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import distributed

from ...ablation import Trial
from ...ablation._task import Task as AblationTask
from ...ablation._task import run


def announce(trial: Trial | None) -> None:
    """Tell the other processes what is trained next; None says that nothing is."""
    distributed.broadcast_object_list([trial], src=0)


def follow(task: Any, example: tuple[Any, ...], folder: Path, threads: int | None) -> None:
    """Train along until the first process has nothing more to train.

    **Raises:** `RuntimeError` with the traceback if a trial fails here.
    """
    while True:
        told: list[Trial | None] = [None]
        distributed.broadcast_object_list(told, src=0)
        trial = told[0]
        if trial is None:
            return
        record = run(
            AblationTask(
                trial,
                task.build,
                task.train,
                _nothing,
                folder,
                60.0,
                threads,
                example,
            )
        )
        diverged = record.reason.startswith("FloatingPointError")  # in all processes alike
        if record.status == "failed" and not diverged:
            raise RuntimeError(f"{record.id} failed in this process:\n{record.traceback}")


def _nothing(model: Any, trial: Trial) -> dict[str, float]:  # noqa: ARG001 - as evaluate
    return {"followed": 1.0}
