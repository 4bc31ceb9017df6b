"""A fair comparison: search on validation images, then test once. Built on the ablation engine.

In the processes that ``torchrun`` started, the first one runs the study: it reads and writes the
store, searches and measures. Before it trains, it tells the others which trial it is, and they
train along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from ...ablation import AblationError, AblationOptions, Record, Trial, ablate
from ...ablation._task import Task as AblationTask
from ...ablation._task import run
from ._experiment import Arm

SEARCH_SEED = 1000  # the seeds of the search are not those of the test
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Found:
    """What was found of one arm.

    **Attributes:**

    - `arm`: the arm.
    - `attempts`: the points of the search: settings, the values of the criterion, and their mean.
      Empty where there was nothing to choose.
    - `chosen`: the settings that were tested; None where every point of the search diverged.
    - `records`: one a seed. Those of trainings that diverged have failed.
    """

    arm: Arm
    attempts: list[dict[str, Any]]
    chosen: dict[str, Any] | None
    records: list[Record]

    @property
    def finished(self) -> list[Record]:
        """The records of trainings that did not diverge."""
        return [record for record in self.records if record.status == "done"]


@dataclass
class Study:
    """How arms are compared.

    **Arguments:**

    - `task`: has ``build()``, ``train(model, trial)`` and ``evaluate(model, trial)``, as an
      `ImageTask`; ``trial["split"]`` says on which images.
    - `store`: the folder of the ablation engine's store.
    - `criterion`: the metric that chooses among the points of a search; `largest` is best.
    - `seeds`, `search_seeds`: how many.
    - `options`: of the ablation engine.
    - `on_trials`: called with the numbers of trials that are finished, and of all.
    """

    task: Any
    store: Path
    criterion: str
    seeds: int
    search_seeds: int
    options: AblationOptions
    largest: bool = True
    on_trials: Callable[[int, int], object] | None = None

    def run(self, arms: Sequence[Arm]) -> list[Found]:
        """Search for every arm, then test every arm, seed by seed.

        A training that diverges is an outcome, and is kept, as is an arm of which all diverge;
        whatever else fails ends the study.

        **Raises:** `AblationError` if trials failed, or if all of the first arm diverged, with
        which the others are compared.
        """
        points = sum(len(arm.points) for arm in arms if len(arm.points) > 1)
        self._finished, self._all = 0, points * self.search_seeds + len(arms) * self.seeds
        found = []
        for arm in arms:
            attempts = self._search(arm)
            found.append(Found(arm, attempts, self._choose(arm, attempts), []))
            if found[-1].chosen is None:
                self._all -= self.seeds
            if found[0].chosen is None:
                raise AblationError(
                    f"Every point of the search of {arm.name} diverged, with which the others are "
                    f"compared, the first with: {attempts[0]['failed']}"
                )
        for seed in range(self.seeds):
            for part in found:
                if part.chosen is not None:
                    part.records.extend(self._ablate(part.arm, part.chosen, [seed], TEST))
        if not found[0].finished:
            self._refuse(found[0].records[0])
        return found

    def _search(self, arm: Arm) -> list[dict[str, Any]]:
        if len(arm.points) < 2:
            return []
        attempts = []
        seeds = [SEARCH_SEED + i for i in range(self.search_seeds)]
        for point in arm.points:
            records = self._ablate(arm, point, seeds, VALIDATION)
            values = [r.metrics.get(self.criterion, math.nan) for r in records]
            attempt: dict[str, Any] = {
                "settings": point,
                "values": values,
                "mean": sum(values) / len(values),
            }
            if not math.isfinite(attempt["mean"]):
                reasons = [record.reason for record in records if record.status == "failed"]
                attempt["failed"] = next(iter(reasons), f"Its {self.criterion} is not finite.")
            attempts.append(attempt)
        return attempts

    def _choose(self, arm: Arm, attempts: list[dict[str, Any]]) -> dict[str, Any] | None:
        if not attempts:
            return arm.points[0]
        finished = [attempt for attempt in attempts if math.isfinite(attempt["mean"])]
        if not finished:
            return None
        pick = max if self.largest else min
        best: dict[str, Any] = pick(finished, key=lambda attempt: attempt["mean"])["settings"]
        return best

    def _ablate(
        self,
        arm: Arm,
        point: dict[str, Any],
        seeds: list[int],
        split: str,
    ) -> list[Record]:
        result = ablate(
            self.task.build,
            self.task.train,
            self.task.evaluate,
            rules=[] if arm.rule is None else [arm.rule],
            baseline=arm.rule is None,
            seeds=seeds,
            store=self.store,
            options=self.options,
            axes={"split": split, **point},
        )
        for record in result.failed:
            if not diverged(record):
                self._refuse(record)
        self._finished += len(seeds)
        if self.on_trials is not None:
            self.on_trials(self._finished, self._all)
        return result.records

    def _refuse(self, record: Record) -> None:
        raise AblationError(
            f"{record.id} failed: {record.reason} Its traceback is in "
            f"{self.store / 'trials' / record.id}. Mended, --retry-failed runs it again."
        )


def diverged(record: Record) -> bool:
    """Return whether a trial failed because its loss was no longer finite."""
    return record.status == "failed" and record.reason.startswith("FloatingPointError")


def announce(trial: Trial | None) -> None:
    """Tell the other processes what is trained next; None says that nothing is."""
    distributed.broadcast_object_list([trial], src=0)


def follow(task: Any, example: tuple[Any, ...], folder: Path, threads: int | None) -> None:
    """Train along until the first process has nothing more to train.

    **Raises:** `RuntimeError` with the traceback if a trial fails here.
    """
    options = AblationOptions(threads=threads, example_inputs=example)
    while True:
        told: list[Trial | None] = [None]
        distributed.broadcast_object_list(told, src=0)
        trial = told[0]
        if trial is None:
            return
        functions = (task.build, task.train, lambda *_: {"followed": 1.0})
        record = run(AblationTask(trial, *functions, folder, options))
        if record.status == "failed" and not diverged(record):  # it diverges in all alike
            raise RuntimeError(f"{record.id} failed in this process:\n{record.traceback}")
