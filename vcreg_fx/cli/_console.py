"""What is printed, no wider than the terminal: prose, tables, and the sites of a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..surgery import Plan


def say(text: str, *, err: bool = False) -> None:
    """Print prose, wrapped; a word that is longer than a line, such as a path, stays whole."""
    width = Console(stderr=err).width
    for line in text.split("\n"):
        typer.echo(fill(line, width, break_long_words=False, break_on_hyphens=False), err=err)


def say_written(*paths: Path) -> None:
    """Say which files were written, a line each."""
    for path in paths:
        say(f"Written: {path}")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str] = (),
) -> None:
    """Print a table; cells that are too wide for the terminal are folded.

    **Arguments:**

    - `columns`, `rows`: plain text.
    - `right`: the columns whose cells end at the right, as numbers do.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(
            escape(name), justify="right" if name in right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def print_markdown(text: str) -> None:
    """Print Markdown, with its tables folded."""
    Console().print(Markdown(text))


def print_sites(plan: Plan) -> None:
    """Print the sites of a plan as a table, and what is to be said of them."""
    from ..surgery import notes

    count = len(plan.sites)
    model = type(plan.model).__name__
    say(f"{model}: {count} site{'s' * (count != 1)} for the rule {plan.rule}")
    rows = [
        (
            site.name,
            " × ".join(map(str, site.shape)),
            str(site.layout),
            str(site.channels),
            str(site.calls),
            site.form if site.clone is None else f"{site.form}, cloned",
        )
        for site in plan.sites
    ]
    columns = ("site", "shape", "layout", "channels", "calls", "form")
    print_table(columns, rows, right={"channels", "calls"})
    for note in notes(plan.sites):
        say(note)
