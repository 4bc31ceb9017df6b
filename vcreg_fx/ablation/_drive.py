"""Give trials to workers until all are finished."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, as_completed
from typing import Any

from ._errors import AblationError
from ._executors import Workers, lost_worker_errors
from ._record import Record
from ._store import Store
from ._task import Task, work

_PAUSE = 0.5  # seconds between looks at trials that other processes run
_PATIENCE = 5.0  # seconds; a process tells its parent that it ends a moment before it is gone


def drive(
    tasks: Sequence[Task],
    store: Store,
    workers: Workers,
    retries: int,
    on_finished: Callable[[str], object],
) -> None:
    """Run trials until each is in the store.

    In rounds: every trial that is neither finished nor running elsewhere is submitted, and the
    round's results are waited for. What a lost worker left is submitted again in the next round.

    **Arguments:**

    - `retries`: how often a trial is run again whose worker died; then that is its record.
    - `on_finished`: called with the name of each trial, once.

    **Raises:** `AblationError` if workers fail outside of trials.
    """
    open_tasks = {task.trial.id: task for task in tasks}
    lost: Counter[str] = Counter()
    barren = 0
    while open_tasks:
        _drop_finished(open_tasks, store, on_finished)
        ready = [task for name, task in open_tasks.items() if not store.is_running(name)]
        if not ready:
            if open_tasks:
                time.sleep(_PAUSE)
            continue
        before = len(open_tasks), lost.total()
        broken = _round(ready, open_tasks, store, workers, lost, on_finished)
        _drop_finished(open_tasks, store, on_finished)
        for name in [name for name in lost if name in open_tasks and lost[name] > retries]:
            store.publish(_given_up(open_tasks[name], lost[name]))
        if broken:
            barren = barren + 1 if before == (len(open_tasks), lost.total()) else 0
            if barren > retries:
                raise AblationError(
                    "The executor's workers die before they begin a trial. Its first error was "
                    f"{broken}"
                )
            workers.replace()
        elif before == (len(open_tasks), lost.total()):
            time.sleep(_PAUSE)  # all of them were claimed by other processes in the meantime


def _round(
    ready: Sequence[Task],
    open_tasks: dict[str, Task],
    store: Store,
    workers: Workers,
    lost: Counter[str],
    on_finished: Callable[[str], object],
) -> str:
    """Submit trials and wait for them; return the error that broke the executor, if any."""
    broken = ""
    futures: dict[Future[Any], str] = {}
    try:
        for task in ready:
            futures[workers.executor.submit(work, task)] = task.trial.id
            _drop_finished(open_tasks, store, on_finished, [task.trial.id])
    except BrokenExecutor as error:
        broken = repr(error)
    try:
        for future in as_completed(futures):
            name = futures[future]
            try:
                future.result()
            except BrokenExecutor as error:
                broken = repr(error)
                lost[name] += _was_lost(store, name)
            except lost_worker_errors():  # the executor itself goes on, as Dask's does
                lost[name] += 1
            _drop_finished(open_tasks, store, on_finished, [name])
    except AblationError:
        raise
    except Exception as error:
        raise AblationError(
            f"A worker failed outside of a trial: {type(error).__name__}: {error}. Finished trials "
            "are in the store; call ablate again when the cause is mended."
        ) from error
    finally:
        for future in futures:
            future.cancel()
    return broken


def _was_lost(store: Store, name: str) -> bool:
    """Whether a worker of a broken executor had begun a trial, and is gone."""
    until = time.monotonic() + _PATIENCE
    while store.is_running(name) and time.monotonic() < until:
        time.sleep(_PAUSE / 10)
    return store.is_abandoned(name) and not store.is_done(name)


def _drop_finished(
    open_tasks: dict[str, Task],
    store: Store,
    on_finished: Callable[[str], object],
    names: Sequence[str] | None = None,
) -> None:
    for name in list(open_tasks) if names is None else names:
        if name in open_tasks and store.is_done(name):
            del open_tasks[name]
            on_finished(name)


def _given_up(task: Task, times: int) -> Record:
    reason = (
        f"WorkerLost: the process that ran this trial died {times} times without an exception, as "
        "one does that runs out of memory.\n"
    )
    return Record.of(task.trial, status="failed", traceback=reason)
