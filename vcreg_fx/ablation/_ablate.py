"""Run an ablation: rules × axes × seeds, resumable, on any executor."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .._shared.progress import Progress
from ._claim import Owner, in_words
from ._drive import Workers, drive
from ._records import Record
from ._result import AblationResult
from ._store import Store
from ._task import LOOK, AblationOptions, Build, Evaluate, Task, Train
from ._trials import ARGUMENTS, RuleLike, make_trials

_LOG = logging.getLogger(__name__)

PAPER = ("VCReg1", "VCReg2", "VCReg3", "VCReg4")


def ablate(
    build: Build,
    train: Train,
    evaluate: Evaluate,
    rules: RuleLike | Iterable[RuleLike] = PAPER,
    seeds: Iterable[int] = (0, 1, 2),
    axes: Mapping[str, Any] | None = None,
    baseline: bool = True,
    store: str | Path = "runs/ablation",
    executor: Executor | int | None = None,
    options: AblationOptions | None = None,
    **misplaced: NoReturn,
) -> AblationResult:
    """Train a model once for every rule, every value of every axis and every seed; compare.

    Each trial seeds torch, NumPy and Python, calls ``build()``, inserts VCReg by the rule, seeds
    again, calls ``train(model, trial)`` and then ``evaluate(model, trial)``. So all trials of one
    seed begin with the same weights and see the same data in the same order, and the same seed
    gives the same numbers in any process.

    A trial that raises is recorded with its traceback, and the others go on. Finished trials are
    never run again: a run that was killed goes on where it was, and several processes, also on
    several machines, may work on one store at the same time. Every call returns when all of its
    trials are finished, whoever ran them.

    **Arguments:**

    - `build`: returns a new model.
    - `train`: trains it in place. ``trial["lr"]`` is the value of the axis ``lr`` in this trial;
      ``trial.seed`` its seed.
    - `evaluate`: returns a dictionary of numbers.
    - `rules`: strings, rule objects, the paper's ``"VCReg1"`` to ``"VCReg4"``, or generators:
      ``rules.each("blocks")``, ``leave_one_out``, ``prefixes``.
    - `seeds`: whole numbers.
    - `axes`: name → list of values. Arguments of `insert` (``"alpha": [0.32, 0.64]``) are passed to
      it; all others are the user's own, and only passed through in the trial.
    - `baseline`: run every seed without VCReg, too.
    - `store`: the folder of the trials. With workers on other machines, on a shared file system.
    - `executor`: None runs trials here, one after the other; a number runs them in that many
      processes; else any ``concurrent.futures.Executor``, such as Dask's ``client.get_executor()``.
    - `options`: an `AblationOptions`: shards, retries, progress, the look of the table.

    **Returns:** an `AblationResult` with the records of all trials that were asked for.

    **Raises:** `AblationError` for what cannot be run as asked, before anything is trained, and
    where workers cannot reach the store or die again and again; `UnpublishedError` where a finished
    trial cannot be written, as on a full disk; `RuleSyntaxError` and `ValueError`
    for rules and coefficients that do not exist; `NoSiteError` for a generator without sites;
    `TypeError` for any other argument, such as an axis outside of `axes`.
    """
    if misplaced:
        raise TypeError(_misplaced(misplaced))
    options = options or AblationOptions()

    def example() -> tuple[Any, Any, Any]:
        return build(), options.example_inputs, options.example_kwargs

    trials = make_trials(rules, seeds, baseline, {} if axes is None else axes, example)
    folder = Store(store, options.lost_after)
    functions = (build, train, evaluate)
    look: dict[str, Any] = dict.fromkeys(LOOK, ())
    sent = replace(options, on_record=None, **look)  # what other processes have to know
    tasks = [Task(trial, *functions, folder.path, sent) for trial in trials]
    with Workers(executor) as workers:
        workers.check(tasks[0])
        folder.create()
        found = folder.mend([trial.id for trial in trials])
        notes = _notes(options, *functions)
        folder.add_plan(trials, notes)
        if options.shard is not None:
            i, n = options.shard
            tasks = tasks[i - 1 :: n]
        if options.retry_failed:
            asked = {task.trial.id for task in tasks}
            for record in found:
                if record.status == "failed" and record.id in asked:
                    folder.forget(record)
        before = {trial.id for trial in trials if folder.is_done(trial.id)}
        with Progress("trials", len(tasks), shown=options.progress) as bar:
            drive(
                tasks,
                folder,
                workers,
                _shown(folder, bar, options.on_record),
                _waiting(bar, {trial.id: str(trial) for trial in trials}),
            )
    return AblationResult.read(folder, [trial.id for trial in trials], notes, before)


def _shown(
    store: Store, bar: Progress, on_record: Callable[[Record], object] | None
) -> Callable[[str], None]:
    """Return what shows that a trial is finished, and passes its record on."""
    failed = 0

    def finished(name: str) -> None:
        nonlocal failed
        record = store.read(name)
        failed += record.status == "failed"
        first = next((f"{k} {v:.4g}" for k, v in record.metrics.items()), record.reason)
        bar.advance(note=f"{f'{failed} failed; ' if failed else ''}{record.name}: {first}")
        if on_record is not None:
            on_record(record)

    return finished


def _waiting(bar: Progress, names: Mapping[str, str]) -> Callable[[Mapping[str, Owner]], None]:
    """Return what says which processes run the trials that are waited for, once for each."""
    said: set[tuple[str, str]] = set()

    def waiting(holders: Mapping[str, Owner]) -> None:
        for trial, owner in holders.items():
            told = names[trial], in_words(owner)
            bar.advance(note=f"waiting for {told[1]}", steps=0)
            if told not in said:
                said.add(told)
                _LOG.warning("Waiting for %s, which %s runs.", *told)

    return waiting


def _misplaced(given: Mapping[str, Any]) -> str:
    name = next(iter(given))
    close = get_close_matches(name, ARGUMENTS, 1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return (
        f"ablate has no argument {name!r}.{meant} The axes of a study are one argument: "
        f"ablate(…, axes={dict(given)!r})."
    )


def _notes(options: AblationOptions, *functions: Any) -> dict[str, Any]:
    names = ("build", "train", "evaluate")
    return {
        "title": options.title,
        **{name: sorted(getattr(options, name)) for name in LOOK},
        "functions": {
            name: _identity(function) for name, function in zip(names, functions, strict=True)
        },
    }


def _identity(function: Any) -> str:
    """Name a function: the same whether its file runs as a script or is imported."""
    if isinstance(function, functools.partial):
        given = [_argument(value) for value in function.args]
        given += [f"{name}={_argument(value)}" for name, value in sorted(function.keywords.items())]
        return f"partial({', '.join([_identity(function.func), *given])})"
    named = function if hasattr(function, "__qualname__") else type(function)
    module = _main() if named.__module__ == "__main__" else named.__module__
    return f"{module}:{named.__qualname__}"


def _argument(value: Any) -> str:
    """Return what tells an argument from another, the same in every process."""
    if callable(value):
        return _identity(value)
    text = repr(value)
    return _identity(value) if " at 0x" in text else text


def _main() -> str:
    """Return the name under which the script that runs could be imported."""
    main = sys.modules["__main__"]
    if spec := getattr(main, "__spec__", None):  # python -m
        return str(spec.name).removesuffix(".__main__")
    if (file := getattr(main, "__file__", None)) is None:
        return "__main__"  # a notebook, or the prompt
    path = Path(file).absolute()
    names = [path.stem]
    while (path := path.parent).joinpath("__init__.py").exists():
        names.insert(0, path.name)
    return ".".join(names)
