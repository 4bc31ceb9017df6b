"""Every seed of every arm, and measurements over training, in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._shared.pictures import head, panels
from ..._shared.statistics import difference_of, finite_values, paired_difference
from ._render import compared

COLORS = (
    "#d1495b", "#2e7d8c", "#8a63a6", "#c98a1b", "#5b6470", "#4c956c", "#d97fb0", "#6f4e37",
)  # fmt: skip
_COLUMNS = 4  # of panels, at the most


def draw_scatter(report: dict[str, Any], path: Path, metrics: Sequence[str]) -> None:
    """Draw, for each metric, the difference of every seed to what an arm is compared with."""
    known = {metric["name"]: metric for metric in report["metrics"]}
    pairs = compared(report)
    firsts = dict.fromkeys(other["name"] for _, other in pairs)
    columns = min(len(metrics), _COLUMNS)
    rows = -(-len(metrics) // columns)
    crowded = rows * len(pairs) > 12
    size = 1.9 + 2.9 * columns, rows * (1.3 + (0.25 if crowded else 0.42) * len(pairs))
    figure, grid = panels(len(metrics), size, columns, sharey=True)
    for axes, name in zip(grid, metrics, strict=True):
        scale = 100 if known[name]["percent"] else 1
        for height, (row, first) in enumerate(pairs):
            color = COLORS[(height + 1) % len(COLORS)]
            ours, theirs = (finite_values(one["by_seed"], name) for one in (row, first))
            each = [scale * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
            found = difference_of(row["by_seed"], first["by_seed"], name)
            axes.plot(each, [height] * len(each), "o", color=color, alpha=0.45, markersize=4)
            if found.low == found.low:
                axes.plot(
                    [scale * found.low, scale * found.high], [height] * 2, color=color, linewidth=2
                )
            axes.plot(scale * found.mean, height, "D", color=color, markersize=6)
        axes.axvline(0, color=COLORS[0], linewidth=1, linestyle="--", zorder=0)
        axes.set_yticks(range(len(pairs)), [row["name"] for row, _ in pairs])
        axes.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
        unit = ", points" if scale == 100 else ""
        other = next(iter(firsts), "") if len(firsts) < 2 else "none"
        head(axes, known[name]["title"], f"difference to {other}{unit}", "x")
    figure.savefig(path, dpi=75 if crowded else 110)


def draw_curves(
    report: dict[str, Any], path: Path, names: Sequence[str], label: str = "epoch"
) -> None:
    """Draw the mean of each arm over what was varied, with its 95 % interval.

    The value of metric ``m`` at ``x``, such as after an epoch, is the metric ``m_x`` of a record.

    **Arguments:**

    - `names`: the metrics, one a panel.
    - `label`: what was varied.
    """
    known = {metric["name"]: metric for metric in report["metrics"]}
    figure, grid = panels(len(names), (max(3.1 * len(names), 6.4), 3.1 if len(names) > 1 else 3.9))
    for axes, name in zip(grid, names, strict=True):
        places = _places(report["rows"][0], name)
        metric = known.get(name) or known[f"{name}_{places[0]:g}"]
        scale = 100 if metric["percent"] else 1
        for row, color in zip(report["rows"], itertools.cycle(COLORS), strict=False):
            found = [
                [scale * v for v in finite_values(row["by_seed"], f"{name}_{place:g}").values()]
                for place in places
            ]
            spans = [paired_difference(values, [0.0] * len(values)) for values in found]
            axes.plot(
                places, [s.mean for s in spans], "o-", color=color, label=row["name"], markersize=4
            )
            axes.fill_between(
                places, [s.low for s in spans], [s.high for s in spans],
                color=color, alpha=0.18, linewidth=0,
            )  # fmt: skip
        title = metric["title"] if name in known else "accuracy, %"
        head(axes, title, label)
    lines, labels = grid[0].get_legend_handles_labels()
    beside = 4 if len(names) > 1 else 2
    figure.legend(
        lines, labels, loc="outside lower center", ncols=beside, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=110 if len(report["rows"]) < 5 else 85)


def _places(row: dict[str, Any], name: str) -> list[float]:
    metrics = next(iter(row["by_seed"].values()))
    prefix = f"{name}_"
    return sorted(float(key[len(prefix) :]) for key in metrics if key.startswith(prefix))
