"""``vcreg-fx coverage``: on how many models of a library a rule finds its sites."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from textwrap import shorten
from typing import Annotated

import torch
import typer
from rich.console import Console

from placement_rules import NoSiteError, PlacementError, RecordingError, parse

from .._shared.progress import Progress
from ..surgery import plan
from ._console import print_table
from ._coverage_check import check
from ._errors import clear_errors
from ._model import load_model
from ._zoo import build, zoo


def coverage(
    source: Annotated[str, typer.Option(help="timm, torchvision or transformers.")] = "timm",
    rule: Annotated[str, typer.Option(metavar="EXPR", help="Where.")] = "blocks",
    every: Annotated[
        bool, typer.Option("--all", help="Every model, not only one of each module file.")
    ] = False,
    checks: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also insert, run a training step on a small input, and compare outputs and "
            "gradients with the plain model and the naive losses.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write rows there; a second run goes on."),
    ] = None,
) -> None:
    """Try a rule on a library's models, a row a model. Nothing is downloaded or trained."""
    with clear_errors():
        parse(rule)
        names = zoo(source, every)
        torch.set_num_threads(1)  # small work on fake tensors; and so that times compare
        earlier = read_rows(output) if output is not None else []
        done = {row.model: row for row in earlier if row.rule == rule and enough(row, checks)}
        console = Console()
        with Progress("models", len(names), console=console) as bar:
            for name in names:
                if name not in done:
                    done[name] = coverage_of(name, rule, checks=checks)
                    if output is not None:
                        others = [r for r in earlier if r.rule != rule or r.model not in done]
                        write_rows(output, [*others, *done.values()])
                bar.advance()
        rows = [done[name] for name in names]
        _print(console, rows)
        typer.echo(summary(rows))
        if any(row.outcome in {"failed", "wrong"} for row in rows):
            raise typer.Exit(1)


def _print(console: Console, rows: list[Row]) -> None:
    checked = any(row.check for row in rows)
    cells = []
    for row in rows:
        found = (str(row.sites), row.forms, row.layouts)
        if row.outcome != "planned":
            found = ("", row.outcome, shorten(row.reason, 100, placeholder=" …"))
        last = [shorten(row.check, 40, placeholder=" …")] if checked else []
        cells.append((row.model, *found, f"{row.seconds:.2f}", *last))
    columns = ["model", "sites", "form", "layout", "seconds", *(["check"] if checked else [])]
    print_table(console, columns, cells, right={"sites", "seconds"})


@dataclass(frozen=True)
class Row:
    """One model.

    **Attributes:**

    - `sites`: how many sites; 0 if there are none.
    - `forms`, `layouts`: which forms and layouts occur, with their counts.
    - `seconds`: from the built model to the plan.
    - `outcome`: ``"planned"``; ``"none"``, if the model has no place that the rule selects;
      ``"refused"``, if it has one that cannot be used; ``"failed"`` (an internal error), or
      ``"wrong"``, if a check found it so. All but the first with a reason.
    - `check`: what a training step gave, if one was run: the gradient's relative error.
    """

    model: str
    rule: str
    outcome: str
    sites: int = 0
    forms: str = ""
    layouts: str = ""
    seconds: float = 0.0
    reason: str = ""
    check: str = ""


def coverage_of(name: str, rule: str, *, checks: bool = False) -> Row:
    """Plan a rule on one model of the zoo; with `checks`, also insert and run a training step."""
    row = _plan(name, rule)
    if not checks or row.outcome != "planned":
        return row
    try:
        right, found = check(name, rule)
    except PlacementError as error:
        return replace(row, check=f"not checked: {error}")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return replace(row, outcome="failed", reason=reason)
    if not right:
        return replace(row, outcome="wrong", reason=found, check=found)
    return replace(row, check=found)


def _plan(name: str, rule: str) -> Row:
    start = time.perf_counter()
    try:
        model, inputs = build(name)
        start = time.perf_counter()
        try:
            planned = plan(model, rule, example_inputs=inputs)
        except RecordingError:
            if not any(parameter.is_meta for parameter in model.parameters()):
                raise
            start = time.perf_counter()
            planned = plan(load_model(name), rule, example_inputs=inputs)
    except PlacementError as error:
        outcome = "none" if isinstance(error, NoSiteError) else "refused"
        return Row(name, rule, outcome, seconds=_since(start), reason=str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Row(name, rule, "failed", seconds=_since(start), reason=reason)
    sites, seconds = planned.sites, _since(start)
    forms, layouts = ((site.form for site in sites), (str(site.layout) for site in sites))
    return Row(name, rule, "planned", len(sites), _count(forms), _count(layouts), seconds)


def summary(rows: list[Row]) -> str:
    """Return the counts and times of the rows as two lines."""
    outcomes = Counter(row.outcome for row in rows)
    planned, total = outcomes["planned"], len(rows)
    share = 100 * planned / max(total, 1)
    counts = (
        f"{planned} of {total} models planned ({share:.1f} %), {outcomes['none']} without such a "
        f"site, {outcomes['refused']} refused with a reason, {outcomes['failed']} failed."
    )
    if checked := [row for row in rows if row.check]:
        right = sum(row.outcome == "planned" and row.check[0].isdigit() for row in checked)
        counts += (
            f"\n{right} of {len(checked)} models checked: outputs equal bit for bit, gradients of "
            f"the naive losses; {outcomes['wrong']} wrong."
        )
    seconds = [row.seconds for row in rows]
    if len(seconds) < 2:
        return counts
    return (
        f"{counts}\nSeconds a model: median {median(seconds):.2f}, 95th percentile "
        f"{quantiles(seconds, n=20)[-1]:.2f}, most {max(seconds):.2f}."
    )


def enough(row: Row, checks: bool) -> bool:
    """Whether an earlier row tells what is asked: planned ones may lack the check."""
    return not checks or bool(row.check) or row.outcome != "planned"


def read_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier run; none if the file does not exist."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows, in one step, so that a run that is stopped leaves a whole file."""
    import timm
    import torchvision

    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm)}
    data = {"versions": versions, "rows": [asdict(row) for row in rows]}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _count(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ", ".join(f"{count} {value}" for value, count in sorted(counts.items()))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
