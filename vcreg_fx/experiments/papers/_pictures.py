"""Every seed of every arm, and measurements over training, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._shared.pictures import head, panels
from ..._shared.statistics import difference_of, finite_values, summary_of

COLORS = ("#d1495b", "#2e7d8c", "#8a63a6", "#c98a1b", "#5b6470", "#4c956c")


def draw_scatter(report: dict[str, Any], path: Path, metrics: Sequence[str]) -> None:
    """Draw, for each metric, the difference to the first arm of every seed, with its interval."""
    known = {metric["name"]: metric for metric in report["metrics"]}
    others = report["rows"][1:]
    first = report["rows"][0]
    size = 1.9 + 2.9 * len(metrics), 1.3 + 0.42 * len(others)
    figure, grid = panels(len(metrics), size, sharey=True)
    for axes, name in zip(grid, metrics, strict=True):
        scale = 100 if known[name]["percent"] else 1
        for height, row in enumerate(others):
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
        axes.set_yticks(range(len(others)), [row["name"] for row in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
        unit = ", points" if scale == 100 else ""
        head(axes, known[name]["title"], f"difference to {first['name']}{unit}", "x")
    figure.savefig(path, dpi=110)


def draw_curves(report: dict[str, Any], path: Path, names: Sequence[str]) -> None:
    """Draw the mean of each arm after each measured epoch, with one standard deviation.

    The value of metric ``m`` after epoch ``e`` is the metric ``m_e`` of a record.
    """
    titles = {metric["name"]: metric["title"] for metric in report["metrics"]}
    figure, grid = panels(len(names), (3.1 * len(names), 2.7))
    for axes, name in zip(grid, names, strict=True):
        for row, color in zip(report["rows"], COLORS, strict=False):
            epochs = _epochs(row, name)
            found = [summary_of(row["by_seed"], f"{name}_{e}") for e in epochs]
            means = [s.mean for s in found]
            axes.plot(epochs, means, "o-", color=color, label=row["name"], markersize=4)
            axes.fill_between(
                epochs,
                [s.mean - s.std for s in found],
                [s.mean + s.std for s in found],
                color=color,
                alpha=0.18,
                linewidth=0,
            )
        head(axes, titles[name], "epoch")
    grid[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _epochs(row: dict[str, Any], name: str) -> list[int]:
    metrics = next(iter(row["by_seed"].values()))
    prefix = f"{name}_"
    return sorted(int(key[len(prefix) :]) for key in metrics if key.startswith(prefix))
