"""``vcreg-fx coverage``: on how many models of a library a rule finds its sites."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ._errors import clear_errors

if TYPE_CHECKING:
    from rich.console import Console

    from ._coverage_rows import Row


def coverage(
    source: Annotated[str, typer.Option(help="timm, torchvision or transformers.")] = "timm",
    rule: Annotated[str, typer.Option(metavar="EXPR", help="Where.")] = "blocks",
    every: Annotated[
        bool, typer.Option("--all", help="Every model, not only one of each module file.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also insert, run a training step on a small input, and compare outputs and "
            "gradients with the plain model and the naive losses.",
        ),
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write rows there; a second run goes on."),
    ] = None,
) -> None:
    """Try a rule on a library's models, a row a model. Nothing is downloaded or trained."""
    with clear_errors():
        from rich.console import Console
        from rich.progress import track

        from placement_rules import parse

        from ._coverage_rows import coverage_of, enough, read_rows, summary, write_rows
        from ._zoo import zoo

        parse(rule)
        names = zoo(source, every)
        torch.set_num_threads(1)  # small work on fake tensors; and so that times compare
        earlier = read_rows(json) if json is not None else []
        done = {row.model: row for row in earlier if row.rule == rule and enough(row, check)}
        console = Console()
        for name in track(names, "models", console=console, disable=not console.is_terminal):
            if name not in done:
                done[name] = coverage_of(name, rule, checks=check)
                if json is not None:
                    others = [row for row in earlier if row.rule != rule or row.model not in done]
                    write_rows(json, [*others, *done.values()])
        rows = [done[name] for name in names]
        _print(console, rows)
        console.print(summary(rows), highlight=False, markup=False, soft_wrap=True)
        if any(row.outcome in {"failed", "wrong"} for row in rows):
            raise typer.Exit(1)


def _print(console: Console, rows: list[Row]) -> None:
    from rich.markup import escape

    from ._console import plain_table, print_table

    table = plain_table()
    checked = any(row.check for row in rows)
    for name in ("model", "sites", "form", "layout", "seconds", *(["check"] if checked else [])):
        table.add_column(name, justify="right" if name in {"sites", "seconds"} else "left")
    for row in rows:
        if row.outcome == "planned":
            cells = (str(row.sites), row.forms, row.layouts)
        else:
            cells = ("", row.outcome, escape(shorten(row.reason, 100, placeholder=" …")))
        found = [escape(shorten(row.check, 40, placeholder=" …"))] if checked else []
        table.add_row(escape(row.model), *cells, f"{row.seconds:.2f}", *found)
    print_table(console, table)
