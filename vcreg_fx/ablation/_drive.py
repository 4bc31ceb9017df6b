"""Give trials to workers, here, in other processes or on other machines, until all are done."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import replace
from typing import Any

from ._claim import Owner, Standing
from ._store import Store
from ._task import Task, end_with_parent, work
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
            executor = ProcessPoolExecutor(executor, context, initializer=end_with_parent)
            self._ours.append(executor)
        self.executor: Executor = SerialExecutor() if executor is None else executor
        self.is_broken = False

    @property
    def isolated(self) -> bool:
        """Whether a worker's death is known to leave the other workers alone."""
        return self._is_dask or isinstance(self.executor, (SerialExecutor, ThreadPoolExecutor))

    @property
    def _is_dask(self) -> bool:
        dask = sys.modules.get("distributed.cfexecutor")
        return dask is not None and isinstance(self.executor, dask.ClientExecutor)

    def submit(self, task: Task) -> Future[Any]:
        """Give a trial to a worker, also one that was given before.

        Dask takes equal calls for one, and while anything still refers to the first of them, it
        answers with that one's result: a trial that its worker left would never be run again.
        """
        options = {"pure": False} if self._is_dask else {}
        return self.executor.submit(work, task, **options)

    def finished(
        self, futures: Mapping[Future[Any], str], is_done: Callable[[str], bool]
    ) -> Iterator[Future[Any]]:
        """Yield each future when it is done, or when its trial is.

        Dask's executor leaves a future open for ever where a worker dies with the result.
        """
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, _PATIENCE, FIRST_COMPLETED)
            if not done:
                done = {future for future in waiting if is_done(futures[future])}
                waiting -= done
            yield from done

    def check(self, task: Task) -> None:
        """Refuse functions that cannot be sent to another process.

        **Raises:** `AblationError` that says how to write them.
        """
        if task.options.timeout is None and not isinstance(self.executor, ProcessPoolExecutor):
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
        old.shutdown()  # when all its workers have ended, their claims are known to be lost
        settings: Any = old  # what it was made with has no public names
        self.executor = ProcessPoolExecutor(
            settings._max_workers,
            mp_context=settings._mp_context,
            initializer=settings._initializer,
            initargs=settings._initargs,
        )
        self._ours.append(self.executor)
        self.is_broken = False

    def __enter__(self) -> Workers:
        """Return itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Shut down what was made here; after an error, without waiting for queued trials.

        After an interruption running trials are ended, too: a worker would go on with the next.
        """
        for executor in self._ours:
            pool: Any = executor
            running = list((pool._processes or {}).values())
            executor.shutdown(wait=error is None, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                for process in running:
                    process.kill()


def lost_worker_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that say that a worker died, of all executors that are in use."""
    scheduler = sys.modules.get("distributed.scheduler")
    return (BrokenExecutor,) if scheduler is None else (BrokenExecutor, scheduler.KilledWorker)


_PAUSE = 0.5  # seconds between looks at trials that other processes run
_PATIENCE = 10.0  # seconds without a result, after which the store is looked at


def drive(
    tasks: Sequence[Task],
    store: Store,
    workers: Workers,
    on_finished: Callable[[str], object],
    on_waiting: Callable[[Mapping[str, Owner]], object],
) -> None:
    """Run trials until each is in the store.

    In rounds: every trial that is neither finished nor running elsewhere is submitted, and the
    round's results are waited for. What a lost worker left is submitted again in a later round.
    Where a worker's death ends its neighbours, too, the trials that were running are then run one
    by one, so that none is blamed for another.

    **Arguments:**

    - `on_finished`: called with the name of each trial, once.
    - `on_waiting`: called while other processes run all that is left: trial → process.

    **Raises:** `AblationError` if workers fail outside of trials.
    """
    open_tasks = {task.trial.id: task for task in tasks}

    def drop_finished(names: Iterable[str]) -> None:
        for name in list(names):
            if name in open_tasks and store.is_done(name):
                del open_tasks[name]
                store.claims.clear(name)
                on_finished(name)

    def standings() -> dict[str, Standing]:
        found = store.claims.standings()
        return {name: found.get(name, Standing()) for name in open_tasks}

    first, barren = standings(), 0
    while open_tasks:
        drop_finished(open_tasks)
        before = standings()
        free = [name for name, standing in before.items() if standing.holder is None]
        if not free:
            if open_tasks:
                on_waiting({name: standing.holder or {} for name, standing in before.items()})
                time.sleep(_PAUSE)
            continue
        begun = [name for name in free if len(before[name].lost) > len(first[name].lost)]
        suspects = [] if workers.isolated else begun
        chosen = [name for name in free if name not in suspects] or suspects[:1]
        alone = workers.isolated or chosen == suspects[:1]
        ready = [replace(open_tasks[name], alone=alone) for name in chosen]
        broken = _round(ready, store, workers, drop_finished)
        if broken and workers.is_broken:
            workers.replace()
        drop_finished(open_tasks)
        if len(open_tasks) < len(before) or standings() != before:
            barren = 0
        elif broken:
            barren += 1
            if barren > tasks[0].options.retries:
                raise AblationError(
                    "The executor's workers die before they begin a trial. Its first error was "
                    f"{broken}"
                )
        else:
            time.sleep(_PAUSE)  # all of them were claimed by other processes in the meantime


def _round(
    ready: Sequence[Task],
    store: Store,
    workers: Workers,
    drop_finished: Callable[[Iterable[str]], None],
) -> str:
    """Submit trials and wait for them; return the error that told of a lost worker, if any."""
    broken = ""
    futures: dict[Future[Any], str] = {}
    try:
        for task in ready:
            future = workers.submit(task)
            futures[future] = task.trial.id
            if future.done() and future.exception() is not None:
                break  # what cannot be written now cannot be written after the next trial either
            drop_finished([task.trial.id])
    except BrokenExecutor as error:
        workers.is_broken = True
        broken = repr(error)
    try:
        for future in workers.finished(futures, store.is_done):
            try:
                if future.done():
                    future.result()
            except BrokenExecutor as error:
                workers.is_broken = True
                broken = repr(error)
            except lost_worker_errors() as error:  # the executor itself goes on, as Dask's does
                broken = repr(error)
            drop_finished([futures[future]])
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
