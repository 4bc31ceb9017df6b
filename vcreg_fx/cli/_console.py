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
    from ..ablation import Record
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


def say_trial(record: Record, metrics: Sequence[str]) -> None:
    """Say on stderr what was found in a trial, in some of its metrics."""
    found = ", ".join(f"{name} {record.metrics[name]:.4g}" for name in metrics)
    say(f"{record.name}: {found or record.reason} ({record.seconds:.0f} s)", err=True)


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
    from ..surgery import cells, notes

    count = len(plan.sites)
    model = type(plan.model).__name__
    say(f"{model}: {count} site{'s' * (count != 1)} for the rule {plan.rule}")
    head, *rows = cells(plan.sites)
    print_table(head, rows, right={"channels", "calls"})
    for note in notes(plan.sites):
        say(note)
