"""What is printed: tables, and the sites of a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..surgery import Plan


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str] = (),
) -> None:
    """Print a table; at its full width where the output goes to a file or a pipe.

    **Arguments:**

    - `columns`, `rows`: plain text; a first column that is too wide is folded.
    - `right`: the columns whose cells end at the right, as numbers do.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(
            escape(name),
            justify="right" if name in right else "left",
            overflow="ellipsis" if index else "fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console = Console(file=console.file, width=max(console.width, needed))
    console.print(table)


def print_sites(console: Console, plan: Plan) -> None:
    """Print the sites of a plan as a table."""
    from ..surgery import notes

    count = len(plan.sites)
    heading = f"{type(plan.model).__name__}: {count} site{'s' * (count != 1)}"
    console.print(
        f"{heading} for the rule {plan.rule}", highlight=False, markup=False, soft_wrap=True
    )
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
    print_table(console, columns, rows, right={"channels", "calls"})
    for note in notes(plan.sites):
        console.print(note, highlight=False, markup=False, soft_wrap=not console.is_terminal)
