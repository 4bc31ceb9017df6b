"""Tables of text, aligned or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a table whose first columns, `text` of them, are text, and all others numbers."""
    rule = ["---" if index < text else "---:" for index in range(len(header))]
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is the head, with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
