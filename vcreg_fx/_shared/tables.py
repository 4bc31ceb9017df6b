"""Tables of text, aligned or in Markdown, and the numbers in them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from .files import printable
from .statistics import Difference, Summary

Writer = Callable[[float, str], str]  # of a number, with a sign as in format: "" or "+"


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a table whose first columns, `text` of them, are text, and all others numbers."""
    rule = ["---" if index < text else "---:" for index in range(len(header))]
    lines = ([in_markdown(cell) for cell in row] for row in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_markdown(text: str) -> str:
    """Return a text, names in it, as no HTML, no end of a cell, and without control characters."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is the head, with aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def written(value: float, decimals: int, sign: str = "") -> str:
    """Return a number with a minus that is one; a dash for what is no number.

    A negative number that is rounded to 0 keeps its sign where signs are asked for.
    """
    if not math.isfinite(value):
        return "–"
    rounded = round(value, decimals) + 0.0  # no −0
    if sign and value < 0:
        rounded = -abs(rounded)
    return f"{rounded:{sign}.{decimals}f}".replace("-", "−")


def mean_and_spread(found: Summary, write: Writer, unit: str = "") -> str:
    """Return a mean ± one standard deviation."""
    if not found.count:
        return "–"
    spread = f" ± {write(found.std, '')}" if found.count > 1 else ""
    return f"{write(found.mean, '')}{spread}{unit}"


def difference_and_interval(found: Difference, write: Writer) -> str:
    """Return a difference with its interval, bold where that leaves 0 out."""
    if found.count < 2:
        return write(found.mean, "+")
    text = f"{write(found.mean, '+')} [{write(found.low, '+')}, {write(found.high, '+')}]"
    if not found.has_spread:
        return f"{text} (no spread)"
    return f"**{text}**" if found.is_clear else text
