"""What a worker is given, and what it does with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
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

LOOK = ("lower_is_better", "percent", "higher_is_better")  # what metrics are in a table


@dataclass(frozen=True)
class AblationOptions:
    """How an ablation is run and shown.

    **Arguments:**

    - `example_inputs`, `example_kwargs`: of one forward call, where `insert` cannot work them out.
    - `shard`: (i, n) runs the i-th of n equal shares of the trials, i from 1.
    - `retry_failed`: run trials again that failed in an earlier run.
    - `retries`: how often a trial is run again whose process died while it ran alone. The store
      counts it, so it holds over several calls.
    - `timeout`: seconds after which a trial is ended and has failed. Each trial then runs in a
      process of its own, also where trials run here one after the other.
    - `lost_after`: seconds after which a process that no longer renews its claim is given up.
    - `threads`: torch's CPU threads in each trial; by default left as they are. Sums depend on it
      in their last digits, so set it where numbers are to be equal on different machines.
    - `progress`: show progress; by default where the output is a terminal.
    - `on_record`: called with each record as it is finished.
    - `title`: the architecture, for the table.
    - `higher_is_better`, `lower_is_better`: metrics of which the largest, or the smallest value is
      the best. In the column of a metric that neither names nothing is bold.
    - `percent`: metrics shown as percentages.
    """

    example_inputs: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] | None = None
    shard: tuple[int, int] | None = None
    retry_failed: bool = False
    retries: int = 2
    timeout: float | None = None
    lost_after: float = 60.0
    threads: int | None = None
    progress: bool | None = None
    on_record: Callable[[Record], object] | None = None
    title: str = ""
    higher_is_better: Collection[str] = ()
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
        if self.timeout is not None and not self.timeout > 0:
            raise AblationError("timeout must be positive, in seconds.")
        for name in LOOK:
            if isinstance(getattr(self, name), str):
                raise AblationError(f"{name} is a list of metrics, not a string.")
        if both := sorted({*self.higher_is_better} & {*self.lower_is_better}):
            raise AblationError(f"{both[0]} is in higher_is_better and in lower_is_better.")


@dataclass(frozen=True)
class Task:
    """A trial with all that a worker needs to run it.

    **Attributes:**

    - `options`: what they say of running it.
    - `alone`: whether the worker would not be ended because another trial's worker died.
    """

    trial: Trial
    build: Build
    train: Train
    evaluate: Evaluate
    store: Path
    options: AblationOptions
    alone: bool = True


def work(task: Task) -> None:
    """Run a trial, unless it is done or another process runs it, and put it into the store.

    An exception of the user's functions ends the trial, and becomes its record. A
    `KeyboardInterrupt` does not: it gives the claim back and goes on.

    **Raises:** `AblationError` if the store cannot be seen from here, or the record cannot be
    written; `OSError` if no claim can be written.
    """
    store = Store(task.store, task.options.lost_after)
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
    if claim.deaths > task.options.retries:
        return _given_up(task.trial, claim.deaths)
    options = task.options
    if options.timeout is None:
        return run(task)
    threads = options.threads or torch.get_num_threads()
    here = replace(task, options=replace(options, threads=threads))
    began = False
    for _ in range(claim.deaths, options.retries + 1):
        record, begun = _run_in_child(here, options.timeout)
        if record is not None:
            return record
        began |= begun
    if not began:
        raise AblationError(
            f"A process of its own ended before it began {task.trial}. Its functions have to be at "
            'the top level of a module, and a script calls ablate below `if __name__ == "__main__":'
            "`; the process has written above what it died of."
        )
    return _given_up(task.trial, options.retries + 1)


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
    with keeping_randomness(), using_threads(task.options.threads):
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
            example_inputs=task.options.example_inputs,
            example_kwargs=task.options.example_kwargs,
            **trial.config,
        )
        names += [site.name for site in sites(model)]
    seed_all(trial.seed)  # whatever build drew: all rules see the same training
    task.train(model, trial)
    return check_metrics(task.evaluate(model, trial))
