"""``vcreg-fx ablate``: a placement ablation, and ``vcreg-fx ablate report``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from placement_rules import UserError

from ._console import print_markdown, say_trial, say_written
from ._errors import Command, OptionError
from ._options import finite, parse_value, threads_option, to_folder

if TYPE_CHECKING:
    from ..ablation import Record

_FUNCTIONS = ("build", "train", "evaluate")
_HINTS = ("title", "percent", "higher_is_better", "lower_is_better")  # in capitals

app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


def _axis(text: str) -> tuple[str, list[Any]]:
    name, sign, values = text.partition("=")
    if not sign or not name.isidentifier() or not values:
        raise typer.BadParameter(f"{text!r} is no axis. Write NAME=VALUE,VALUE: alpha=0.32,0.64.")
    return name, [parse_value(value) for value in values.split(",")]


def _shard(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is no shard. Write I/N: 1/4.")
    return int(parts[0]), int(parts[1])


@app.callback(invoke_without_command=True)
def ablate(  # noqa: PLR0913, PLR0917 - an argument an option
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(metavar="MODULE|FILE", help="Has build, train and evaluate; else digits."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="EXPR", help="May be repeated; else VCReg1 to 4.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 2,
    axis: Annotated[
        list[Any] | None,
        typer.Option(
            "--set", metavar="NAME=A,B", parser=_axis, help="An axis, such as alpha=0.32,0.64."
        ),
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Run without VCReg, too.")] = True,
    store: Annotated[
        Path, typer.Option(metavar="DIR", callback=to_folder, help="Goes on where it was.")
    ] = Path("runs/ablation"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, tcp://HOST:PORT.")
    ] = None,
    shard: Annotated[
        Any, typer.Option(metavar="I/N", parser=_shard, help="Run this share only.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Run failed trials again.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=3, help="Training steps of the digits; else 300.")
    ] = None,
    threads: Annotated[int, threads_option("CPU threads of each trial.")] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.001, callback=finite, help="End trials that take longer."
        ),
    ] = None,
) -> None:
    """Train once for every rule, setting and seed; print and draw the comparison.

    With nothing else: ConvNeXt-Atto on digits, VCReg1 to VCReg4 and without it,
    two seeds, in under 15 minutes on two cores.
    A run that was killed goes on where it was.
    """
    if context.invoked_subcommand is not None:
        return
    from .. import ablation
    from ..ablation._trials import INSERT

    given, options = _functions(task)
    if rule:
        given["rules"] = rule
    axes: dict[str, Any] = dict(axis or ())
    known = (*INSERT, "steps")
    if task is None and (unknown := sorted(axes.keys() - {*known})):
        raise OptionError(
            "--set", f"the digits have no setting {unknown[0]}; they have {', '.join(known)}."
        )
    if task is None and "steps" not in axes:
        from ..experiments import digits_ablation

        axes["steps"] = [steps or digits_ablation.STEPS]
    elif steps is not None:
        raise UserError("--steps is of the digits; for your own task, use --set steps=….")
    with _executor(dask, workers) as executor:
        result = ablation.ablate(
            **given,
            seeds=range(seeds),
            axes=axes,
            baseline=baseline,
            store=store,
            executor=executor,
            options=ablation.AblationOptions(
                shard=shard,
                retry_failed=retry_failed,
                threads=threads,
                timeout=timeout,
                on_record=_print_record,
                **options,
            ),
        )
    print_markdown(result.to_markdown())
    say_written(*ablation.report(store).write())
    if result.failed:
        raise typer.Exit(1)


@app.command(cls=Command)
def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The folder of an ablation.")],
) -> None:
    """Print the table of an ablation, also of one that still runs, and draw its plots."""
    from .. import ablation

    result = ablation.report(store)
    print_markdown(result.to_markdown())
    say_written(*result.write())


def _functions(task: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a task's functions, and what it says of how its results are shown."""
    if task is None:
        from ..experiments import digits_ablation as found
    else:
        from ._model import import_module

        found = import_module(task)
    if missing := [name for name in _FUNCTIONS if not callable(getattr(found, name, None))]:
        raise OptionError(
            "--task",
            f"{task} has no function {' and no '.join(missing)}. A task is a module with build(), "
            "train(model, trial) and evaluate(model, trial).",
        )
    hinted = [name for name in _HINTS if hasattr(found, name.upper())]
    options = {name: getattr(found, name.upper()) for name in hinted}
    return {name: getattr(found, name) for name in _FUNCTIONS}, options


@contextmanager
def _executor(dask: str | None, workers: int | None) -> Iterator[Any]:
    """Yield what `vcreg_fx.ablate` takes as executor."""
    if dask is None:
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        count = workers or here or 1
        yield count if count > 1 else None  # one worker is this process
        return
    if workers is not None:
        raise UserError("--workers is of this machine; the Dask cluster has its own.")
    from distributed import Client

    try:
        client = Client(dask, timeout=10)
    except (OSError, ValueError) as error:
        raise OptionError("--dask", f"There is no scheduler at {dask}: {error}") from error
    with client:
        yield client.get_executor()


def _print_record(record: Record) -> None:
    if not Console(stderr=True).is_terminal:  # where the progress bar shows it
        say_trial(record, list(record.metrics))
