"""``vcreg-fx coverage``: on how many models of a library a rule finds its sites."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._shared.files import write_text
from .._shared.progress import Progress
from ._console import print_table, say, say_written
from ._errors import Lasting, OptionError, go_on
from ._options import json_option

if TYPE_CHECKING:
    from ._row import Row


class Coverage(Lasting):
    """A command that keeps what is finished, if it is asked to."""

    @staticmethod
    def again(params: Mapping[str, Any]) -> str:
        """Return how to go on after a stop, given the options."""
        if params.get("output") is None:
            return "Nothing was kept; with --json FILE the same command goes on where it was."
        return go_on(params)


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
    output: Annotated[Path | None, json_option("Write rows there; a second run goes on.")] = None,
) -> None:
    """Try a rule on a library's models, a row a model. Nothing is downloaded or trained."""
    import torch

    from placement_rules import parse

    from ._row import coverage_of
    from ._zoo import zoo

    parse(rule)
    names = zoo(source, every)
    import_module(source)  # where it is missing, no model needs to be tried
    torch.set_num_threads(1)  # small work on fake tensors; and so that times compare
    earlier = []
    if output is not None and output.exists():
        earlier = _read(output)
    done = {  # planned ones may lack the check
        row.model: row
        for row in earlier
        if row.rule == rule and (not checks or row.check or row.outcome != "planned")
    }
    with Progress("models", len(names)) as bar:
        for name in names:
            if name not in done:
                done[name] = coverage_of(name, rule, checks=checks)
                if output is not None:
                    others = [r for r in earlier if r.rule != rule or r.model not in done]
                    write_rows(output, [*others, *done.values()])
            bar.advance()
    rows = [done[name] for name in names]
    _print(rows)
    say(summary(rows))
    if output is not None:
        say_written(output)
    if any(row.outcome in {"failed", "wrong"} for row in rows):
        raise typer.Exit(1)


def _read(path: Path) -> list[Row]:
    from ._row import Row

    try:
        return [Row(**row) for row in json.loads(path.read_text("utf-8"))["rows"]]
    except (ValueError, TypeError, LookupError) as error:
        raise OptionError("--json", f"{path} holds no rows of an earlier run: {error}") from error


def _print(rows: list[Row]) -> None:
    checked = any(row.check for row in rows)
    cells = []
    for row in rows:
        found = (str(row.sites), row.forms, row.layouts)
        if row.outcome != "planned":
            found = ("", row.outcome, shorten(row.reason, 100, placeholder=" …"))
        last = [shorten(row.check, 40, placeholder=" …")] if checked else []
        cells.append((row.model, *found, f"{row.seconds:.2f}", *last))
    columns = ["model", "sites", "form", "layout", "seconds", *(["check"] if checked else [])]
    print_table(columns, cells, right={"sites", "seconds"})


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


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows, and with which versions they were found."""
    import timm
    import torch
    import torchvision

    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm)}
    data = {"versions": versions, "rows": [asdict(row) for row in rows]}
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
