"""Measurements over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...ablation._statistics import summarize
from ._numbers import values_of
from ._scatter import COLORS


def draw_curves(report: dict[str, Any], path: Path, names: Sequence[str]) -> None:
    """Draw the mean of each arm after each measured epoch, with one standard deviation.

    The value of metric ``m`` after epoch ``e`` is the metric ``m_e`` of a record.
    """
    from matplotlib.figure import Figure

    titles = {metric["name"]: metric["title"] for metric in report["metrics"]}
    figure = Figure(figsize=(3.1 * len(names), 2.7), layout="constrained")
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        for row, color in zip(report["rows"], COLORS, strict=False):
            epochs = epochs_of(row, name)
            found = [summarize(list(values_of(row, f"{name}_{e}").values())) for e in epochs]
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
        axes.set_title(titles[name], fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=8)
        axes.grid(color="#e3e6ea", linewidth=0.8)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    grid[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def epochs_of(row: dict[str, Any], name: str) -> list[int]:
    """Return the epochs after which a metric was measured."""
    metrics = next(iter(row["by_seed"].values()))
    prefix = f"{name}_"
    return sorted(int(key[len(prefix) :]) for key in metrics if key.startswith(prefix))
