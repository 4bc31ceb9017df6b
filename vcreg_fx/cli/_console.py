"""What is printed: consoles and tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..surgery import Plan, notes


def print_table(console: Console, table: Table) -> None:
    """Print a table; at its full width where the output goes to a file or a pipe."""
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console = Console(file=console.file, width=max(console.width, needed))
    console.print(table)


def plain_table() -> Table:
    """Return an empty table in the style of this command line."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def print_sites(console: Console, plan: Plan) -> None:
    """Print the sites of a plan as a table."""
    count = len(plan.sites)
    console.print(
        f"{type(plan.model).__name__}: {count} site{'s' * (count != 1)} for the rule {plan.rule}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = plain_table()
    table.add_column("site", overflow="fold")
    table.add_column("shape")
    table.add_column("layout")
    table.add_column("channels", justify="right")
    table.add_column("calls", justify="right")
    table.add_column("form")
    for site in plan.sites:
        table.add_row(
            escape(site.name),
            " × ".join(map(str, site.shape)),
            str(site.layout),
            str(site.channels),
            str(site.calls),
            site.form if site.clone is None else f"{site.form}, cloned",
        )
    print_table(console, table)
    for note in notes(plan.sites):
        console.print(note, highlight=False, markup=False, soft_wrap=not console.is_terminal)
