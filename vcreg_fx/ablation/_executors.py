"""Where trials run: in this process, in others, on other machines."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any

from ._errors import AblationError


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
        self._given = executor
        self._ours: list[Executor] = []
        self.executor = self._first()

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
        made = ProcessPoolExecutor(
            settings._max_workers,
            mp_context=settings._mp_context,
            initializer=settings._initializer,
            initargs=settings._initargs,
        )
        self._ours.append(made)
        self.executor = made

    def _first(self) -> Executor:
        if isinstance(self._given, Executor):
            return self._given
        if self._given is None:
            return SerialExecutor()
        # A forked child inherits locks that torch's threads hold; a spawned one begins clean.
        context = multiprocessing.get_context("spawn")
        made = ProcessPoolExecutor(self._given, mp_context=context, initializer=_end_with_parent)
        self._ours.append(made)
        return made

    def __enter__(self) -> Workers:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
