"""How matplotlib's axes look in every picture."""

from __future__ import annotations

from typing import Any


def plain(axes: Any, grid: str = "both") -> None:
    """Show a light grid behind the data, and no frame at the top and on the right."""
    axes.grid(axis=grid, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
