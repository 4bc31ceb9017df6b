"""What a worker is given, and what it does with it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .._shared.keeping import keeping_randomness, seed_all, using_threads
from ..surgery import insert, sites
from ._records import Record, check_metrics
from ._store import Store
from ._trials import Trial

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module, Trial], object]
Evaluate = Callable[[nn.Module, Trial], Mapping[str, float]]

# Seeds are those of a process, so one process runs one trial at a time, whatever its threads.
_alone = threading.RLock()


@dataclass(frozen=True)
class Task:
    """A trial with all that a worker needs to run it."""

    trial: Trial
    build: Build
    train: Train
    evaluate: Evaluate
    store: Path
    lost_after: float
    threads: int | None = None
    example_inputs: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] | None = None


def work(task: Task) -> Literal["finished", "busy"]:
    """Run a trial, unless it is done or another process runs it, and put it into the store.

    An exception of the user's functions ends the trial, and becomes its record.

    **Raises:** `AblationError` if the store cannot be seen from here; `OSError` if it cannot be
    written to.
    """
    store = Store(task.store, task.lost_after)
    store.require()
    with _alone:
        if store.is_done(task.trial.id):
            return "finished"
        claim = store.claim(task.trial.id)
        if claim is None:
            return "finished" if store.is_done(task.trial.id) else "busy"
        with claim:
            store.publish(run(task))
    return "finished"


def run(task: Task) -> Record:
    """Run a trial and return its record; torch's, NumPy's and Python's random states stay."""
    began = time.perf_counter()
    names: list[str] = []
    with keeping_randomness(), using_threads(task.threads):
        try:
            metrics = _train_and_evaluate(task, names)
        except Exception:
            found: dict[str, Any] = {"status": "failed", "traceback": traceback.format_exc()}
        else:
            found = {"status": "done", "metrics": metrics}
    seconds = round(time.perf_counter() - began, 3)
    return Record.of(task.trial, sites=names, seconds=seconds, **found)


def _train_and_evaluate(task: Task, names: list[str]) -> dict[str, float]:
    trial = task.trial
    seed_all(trial.seed)
    model = task.build()
    if trial.rule is not None:
        insert(
            model,
            trial.rule,
            example_inputs=task.example_inputs,
            example_kwargs=task.example_kwargs,
            **trial.config,
        )
        names += [site.name for site in sites(model)]
    seed_all(trial.seed)  # whatever build drew: all rules see the same training
    task.train(model, trial)
    return check_metrics(task.evaluate(model, trial))
