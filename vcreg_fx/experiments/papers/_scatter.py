"""Every seed of every arm, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._numbers import difference_of, values_of

COLORS = ("#d1495b", "#2e7d8c", "#8a63a6", "#c98a1b", "#5b6470", "#4c956c")


def draw_scatter(report: dict[str, Any], path: Path, metrics: Sequence[str]) -> None:
    """Draw, for each metric, the difference to the first arm of every seed, with its interval."""
    from matplotlib.figure import Figure

    known = {metric["name"]: metric for metric in report["metrics"]}
    others = report["rows"][1:]
    first = report["rows"][0]
    figure = Figure(
        figsize=(1.9 + 2.9 * len(metrics), 1.3 + 0.42 * len(others)), layout="constrained"
    )
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, metrics, strict=True):
        scale = 100 if known[name]["percent"] else 1
        for height, row in enumerate(others):
            color = COLORS[(height + 1) % len(COLORS)]
            ours, theirs = values_of(row, name), values_of(first, name)
            each = [scale * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
            found = difference_of(row, first, name)
            axes.plot(each, [height] * len(each), "o", color=color, alpha=0.45, markersize=4)
            if found.low == found.low:
                axes.plot(
                    [scale * found.low, scale * found.high], [height] * 2, color=color, linewidth=2
                )
            axes.plot(scale * found.mean, height, "D", color=color, markersize=6)
        axes.axvline(0, color=COLORS[0], linewidth=1, linestyle="--", zorder=0)
        axes.set_yticks(range(len(others)), [row["name"] for row in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
        unit = ", points" if scale == 100 else ""
        axes.set_title(known[name]["title"], fontsize=10, loc="left")
        axes.set_xlabel(f"difference to {first['name']}{unit}", fontsize=8)
        axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
