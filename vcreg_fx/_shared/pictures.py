"""Pictures by matplotlib: a figure of panels, and how its axes look."""

from __future__ import annotations

from typing import Any


def panels(
    count: int, size: tuple[float, float], columns: int | None = None, **shared: Any
) -> tuple[Any, list[Any]]:
    """Return a figure and the axes of so many panels, in one row or in rows of some columns.

    **Arguments:**

    - `size`: width and height in inches.
    - `shared`: ``sharex``, ``sharey``.
    """
    from matplotlib.figure import Figure

    columns = min(count, columns or count)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, **shared)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def plain(axes: Any, grid: str = "both") -> None:
    """Show a light grid behind the data, and no frame at the top and on the right."""
    axes.grid(axis=grid, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def head(axes: Any, title: str, below: str, grid: str = "both") -> None:
    """Head a small panel, name its horizontal axis, and make it plain."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(below, fontsize=8)
    axes.tick_params(labelsize=8)
    plain(axes, grid)
