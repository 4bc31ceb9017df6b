"""What a worker is given, and what it does with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._shared.keeping import keeping_randomness, seed_all, using_threads
from ..surgery import insert, sites
from ._claim import Claim
from ._records import Record, check_metrics
from ._store import Store, UnpublishedError
from ._trials import AblationError, Trial

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module, Trial], object]
Evaluate = Callable[[nn.Module, Trial], Mapping[str, float]]

# Seeds are those of a process, so one process runs one trial at a time, whatever its threads.
_alone = threading.RLock()


_kept: dict[tuple[Path, str], Record] = {}  # finished trials that could not be written


@dataclass(frozen=True)
class Task:
    """A trial with all that a worker needs to run it.

    **Attributes:**

    - `retries`, `timeout`, `lost_after`, `threads`, `example_inputs`, `example_kwargs`: as in
      `AblationOptions`.
    - `alone`: whether the worker would not be ended because another trial's worker died.
    """

    trial: Trial
    build: Build
    train: Train
    evaluate: Evaluate
    store: Path
    lost_after: float = 60.0
    threads: int | None = None
    example_inputs: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] | None = None
    retries: int = 2
    timeout: float | None = None
    alone: bool = True


def work(task: Task) -> None:
    """Run a trial, unless it is done or another process runs it, and put it into the store.

    An exception of the user's functions ends the trial, and becomes its record. A
    `KeyboardInterrupt` does not: it gives the claim back and goes on.

    **Raises:** `AblationError` if the store cannot be seen from here, or the record cannot be
    written; `OSError` if no claim can be written.
    """
    store = Store(task.store, task.lost_after)
    store.require()
    kept = store.path, task.trial.id
    with _alone:
        if store.is_done(task.trial.id):
            return
        claim = store.claim(task.trial.id, alone=task.alone)
        if claim is None:
            return
        with claim:
            record = _kept.get(kept) or _attempt(task, claim)
            # Given up for lost, as after a long sleep, another process runs the trial. It may do
            # well what failed here, perhaps because of that process.
            if record.status == "done" or claim.is_held:
                try:
                    store.publish(record)
                except UnpublishedError:
                    if record.status == "done":
                        _kept[kept] = record
                    raise
            _kept.pop(kept, None)


def _attempt(task: Task, claim: Claim) -> Record:
    if claim.deaths > task.retries:
        return _given_up(task.trial, claim.deaths)
    if task.timeout is None:
        return run(task)
    here = replace(task, threads=task.threads or torch.get_num_threads())
    began = False
    for _ in range(claim.deaths, task.retries + 1):
        record, begun = _run_in_child(here, task.timeout)
        if record is not None:
            return record
        began |= begun
    if not began:
        raise AblationError(
            f"A process of its own ended before it began {task.trial}. Its functions have to be at "
            'the top level of a module, and a script calls ablate below `if __name__ == "__main__":'
            "`; the process has written above what it died of."
        )
    return _given_up(task.trial, task.retries + 1)


def _given_up(trial: Trial, times: int) -> Record:
    reason = (
        f"WorkerLost: the process that ran this trial died {times} times without an exception, as "
        "one does that runs out of memory.\n"
    )
    return Record.of(trial, status="failed", traceback=reason)


def _run_in_child(task: Task, timeout: float) -> tuple[Record | None, bool]:
    """Run a trial in a process of its own, which is killed after a time.

    **Returns:** the record, None if the process died; and whether it began the trial.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(task, theirs))
    try:
        child.start()
    except AssertionError as error:
        raise AblationError(
            "timeout= runs a trial in a process of its own, which this worker is not allowed to "
            'make. For Dask: dask.config.set({"distributed.worker.daemon": False}) before its '
            "workers start."
        ) from error
    theirs.close()
    began = False
    try:
        began = ours.recv() is None
        if not ours.poll(timeout):
            reason = f"TimeLimit: the trial ran for longer than timeout={timeout:g} seconds.\n"
            return Record.of(task.trial, status="failed", traceback=reason, seconds=timeout), began
        answer = ours.recv()
    except EOFError:
        return None, began
    finally:
        child.kill()
        child.join()
        ours.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer, began


def _child(task: Task, answer: multiprocessing.connection.Connection) -> None:
    end_with_parent()
    answer.send(None)
    try:
        answer.send(run(task))
    except KeyboardInterrupt as stopped:
        answer.send(KeyboardInterrupt(*stopped.args))


def end_with_parent() -> None:
    """End this process when the one that made it is killed, which otherwise nothing does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(task: Task) -> Record:
    """Run a trial and return its record; torch's, NumPy's and Python's random states stay."""
    began = time.perf_counter()
    names: list[str] = []
    with keeping_randomness(), using_threads(task.threads):
        try:
            metrics = _train_and_evaluate(task, names)
        except (Exception, SystemExit):
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
