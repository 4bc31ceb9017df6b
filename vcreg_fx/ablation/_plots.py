"""The pictures of an ablation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._shared.pictures import head, panels
from .._shared.statistics import summarize
from ._records import Comparison, Row
from ._trials import AblationError, in_one_line

MOST_ROWS = 300  # of a picture
_POINT, _SEED, _BASELINE = "#2e7d8c", "#9db9bf", "#d1495b"


def draw_placements(result: Comparison, path: Path, metrics: Sequence[str] | None) -> None:
    """Draw one panel a metric, one line a row of the table."""
    names = list(metrics or result.metrics)
    rows = [row for row in result.rows if row.by_seed]
    if unknown := sorted(set(names) - set(result.metrics)):
        raise AblationError(
            f"There is no metric {', '.join(unknown)}; there are {', '.join(result.metrics)}."
        )
    if not names or not rows:
        raise AblationError(f"No trial in {result.store} finished well; there is nothing to draw.")
    if len(rows) > MOST_ROWS:
        raise AblationError(
            f"A picture has room for {MOST_ROWS} rows, and there are {len(rows)}. Ablate fewer "
            "settings at once, or draw what to_pandas gives."
        )
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    labels = [_label(result, row) for row in rows]
    margin = 0.075 * max(len(label) for label in labels)
    size = margin + 3.0 * columns, 0.5 + lines * (0.8 + 0.3 * len(rows))
    figure, grid = panels(len(names), size, columns, sharey=True)
    for axes, metric in zip(grid, names, strict=True):
        _panel(axes, result, rows, metric)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        "diamond: mean over seeds, bar: ± one standard deviation, dots: seeds, dashed: baseline",
        fontsize=8,
        color="#5b6470",
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Any, result: Comparison, rows: Sequence[Row], metric: str) -> None:
    scale = 100 if metric in result.percent else 1
    for height, row in enumerate(rows):
        values = [value * scale for value in row.values(metric).values()]
        if not values:
            continue
        found = row.summary(metric)
        color = _BASELINE if row.is_baseline else _POINT
        if row.is_baseline:
            axes.axvline(found.mean * scale, color=_BASELINE, linewidth=1, linestyle="--", zorder=1)
        axes.plot(values, [height] * len(values), "o", color=_SEED, markersize=4)
        spread = found.std * scale if found.count > 1 else None
        axes.errorbar(found.mean * scale, height, xerr=spread, fmt="D", color=color, markersize=5)
    notes = ["%"] if scale == 100 else []
    notes += ["lower is better"] if metric in result.lower_is_better else []
    notes += ["higher is better"] if metric in result.higher_is_better else []
    head(axes, metric.replace("_", " "), ", ".join(notes), "x")


def draw_heatmaps(result: Comparison, path: Path, metric: str, x: str, y: str) -> None:
    """Draw the mean of a metric over two axes, one map a placement."""
    if metric not in result.metrics:
        raise AblationError(f"There is no metric {metric}; there are {', '.join(result.metrics)}.")
    rows = [row for row in result.rows if {x, y} <= {*row.settings}]
    labels = list(dict.fromkeys(row.label for row in rows))
    if not labels:
        raise AblationError(
            f"No trial has both {x} and {y}. The axes with several values are: "
            f"{', '.join(result.varying) or 'none'}."
        )
    xs, ys = (_axis_values(rows, name) for name in (x, y))
    scale = 100 if metric in result.percent else 1

    def mean(label: str, a: Any, b: Any) -> float:
        """Return the mean over seeds and over all other axes; NaN where there is no trial."""
        cell = (label, a, b)
        own = (row for row in rows if (row.label, row.settings[x], row.settings[y]) == cell)
        return scale * summarize([v for row in own for v in row.values(metric).values()]).mean

    maps = {label: [[mean(label, a, b) for a in xs] for b in ys] for label in labels}
    known = [v for cells in maps.values() for line in cells for v in line if math.isfinite(v)]
    if not known:
        raise AblationError(f"No trial with {x} and {y} finished well; there is nothing to draw.")
    size = 1.6 + len(labels) * (0.9 + 0.75 * len(xs)), 1.6 + 0.55 * len(ys)
    figure, grid = panels(len(labels), size, sharey=True)
    low, high = min(known), max(known)
    form = ".1f" if scale == 100 and high - low > 1 else ".2f" if scale == 100 else "#.3g"
    for axes, (label, cells) in zip(grid, maps.items(), strict=True):
        image = axes.imshow(
            cells, vmin=low, vmax=high, cmap="viridis", aspect="auto", origin="lower"
        )
        axes.set_xticks(range(len(xs)), [str(value) for value in xs])
        axes.set_yticks(range(len(ys)), [str(value) for value in ys])
        axes.set_xlabel(x)
        axes.set_title(label, fontsize=10, loc="left")
        for i, line in enumerate(cells):
            for j, value in enumerate(line):
                if math.isfinite(value):
                    light = value > low + 0.6 * (high - low)
                    axes.text(
                        j, i, f"{value:{form}}", ha="center", va="center", fontsize=8,
                        color="black" if light else "white",
                    )  # fmt: skip
    grid[0].set_ylabel(y)
    unit = " (%)" if scale == 100 else ""
    figure.colorbar(image, ax=grid, label=f"{metric.replace('_', ' ')}{unit}")
    figure.savefig(path, dpi=150)


def _axis_values(rows: Sequence[Row], name: str) -> list[Any]:
    found = {str(v): v for row in rows for v in [row.settings[name]]}
    values = list(found.values())
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return sorted(values) if numeric else values


def _label(result: Comparison, row: Row) -> str:
    known = row.settings
    return in_one_line(row.label, {name: known[name] for name in result.varying if name in known})
