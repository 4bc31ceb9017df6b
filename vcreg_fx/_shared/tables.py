"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a table whose first columns, `text` of them, are text, and all others numbers."""
    rule = ["---" if index < text else "---:" for index in range(len(header))]
    lines = ([cell.replace("|", "\\|") for cell in row] for row in (header, rule, *body))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
