"""Give trials to workers, here, in other processes or on other machines, until all are done."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from typing import Any

from ._records import Record
from ._store import Store
from ._task import Task, work
from ._trials import AblationError


class SerialExecutor(Executor):
    """Runs each call when it is submitted, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function and return its result as a finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Workers:
    """An executor that can be replaced when a worker's death has broken it. Used as a context.

    **Arguments:**

    - `executor`: None for this process, a number of processes, or an executor, which stays the
      user's to shut down.

    **Raises:** `AblationError` for anything else.
    """

    def __init__(self, executor: Executor | int | None) -> None:
        if isinstance(executor, bool) or not isinstance(executor, (int, Executor, type(None))):
            raise AblationError(
                f"executor={executor!r} must be None, a number of processes, or a "
                "concurrent.futures.Executor; for Dask, client.get_executor()."
            )
        if isinstance(executor, int) and executor < 1:
            raise AblationError(f"executor={executor} must be at least 1 process.")
        self._ours: list[Executor] = []
        if isinstance(executor, int):
            # A forked child inherits locks that torch's threads hold; a spawned one begins clean.
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(executor, context, initializer=_end_with_parent)
            self._ours.append(executor)
        self.executor: Executor = SerialExecutor() if executor is None else executor

    def check(self, task: Any) -> None:
        """Refuse functions that cannot be sent to another process.

        **Raises:** `AblationError` that says how to write them.
        """
        if not isinstance(self.executor, ProcessPoolExecutor):
            return
        try:
            pickle.dumps(task)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AblationError(
                f"build, train and evaluate cannot be sent to other processes: {error}. Define "
                'them at the top level of a module (and below `if __name__ == "__main__":` only '
                "call ablate), not as lambdas or inside a function."
            ) from error

    def replace(self) -> None:
        """Go on with a new executor after a worker's death broke the old one.

        **Raises:** `AblationError` for an executor that cannot be made anew from here.
        """
        old = self.executor
        if not isinstance(old, ProcessPoolExecutor):
            raise AblationError(
                f"A {type(old).__name__} broke. Finished trials are in the store: call ablate "
                "again with a new executor, and it goes on from there."
            )
        settings: Any = old  # what it was made with has no public names
        self.executor = ProcessPoolExecutor(
            settings._max_workers,
            mp_context=settings._mp_context,
            initializer=settings._initializer,
            initargs=settings._initargs,
        )
        self._ours.append(self.executor)

    def __enter__(self) -> Workers:
        """Return itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Shut down what was made here; after an error, without waiting for queued trials."""
        for executor in self._ours:
            executor.shutdown(wait=error is None, cancel_futures=True)


def lost_worker_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that say that a worker died, of all executors that are in use."""
    scheduler = sys.modules.get("distributed.scheduler")
    return (BrokenExecutor,) if scheduler is None else (BrokenExecutor, scheduler.KilledWorker)


def _end_with_parent() -> None:
    """End this worker when the process that made it is killed, which otherwise nothing does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
