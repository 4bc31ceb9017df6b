"""The pictures of a benchmark: bars for the table, and lines for the growth of the cost."""

from __future__ import annotations

from pathlib import Path

from .._shared.files import write_text
from .._shared.pictures import panels, plain
from .._shared.report import to_html
from ._one_site import Scaling
from ._result import BenchResult
from ._variants import IDENTITY

_BAR, _LINE = "#2e7d8c", "#d1495b"


def write_results(result: BenchResult, folder: Path) -> None:
    """Write ``results.json``, ``results.md`` and their pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(result.to_json(), "utf-8")
    (folder / "results.md").write_text(result.to_markdown(), "utf-8")
    draw_table(result, folder / "table.png")
    if result.scaling:
        draw_scaling(result.scaling, folder / "scaling.png")
    write_text(folder / "report.html", to_html(result.to_markdown(), folder))


def draw_table(result: BenchResult, path: Path) -> None:
    """Draw each variant's overhead as a multiple of the floor, a panel a model."""
    count = len(result.models)
    figure, grid = panels(count, (9.6, 1.2 + 2.7 * count), columns=1)
    for axes, found in zip(grid, result.models, strict=True):
        rows = [row for row in found.rows if row.variant != IDENTITY][::-1]
        middle = [row.floors[1] for row in rows]
        spread = [
            [max(row.floors[1] - row.floors[0], 0) for row in rows],
            [max(row.floors[2] - row.floors[1], 0) for row in rows],
        ]
        axes.barh([row.variant for row in rows], middle, xerr=spread, color=_BAR, height=0.62)
        axes.axvline(1, color=_LINE, linewidth=1.5)
        for place, (row, high) in enumerate(zip(rows, spread[1], strict=True)):
            text = f"  {row.floors[1]:.2f}   (step × {row.ratio[1]:.3f})"
            axes.text(max(row.floors[1] + high, 0), place, text, va="center", fontsize=8)
        axes.set_title(
            f"{found.model}, batch {found.batch}: the floor is {found.floor_share:.1%} of a step",
            fontsize=10,
            loc="left",
        )
        right = max(row.floors[2] for row in rows) if rows else 1.0
        axes.set_xlim(min(0.0, *(row.floors[0] for row in rows), 0.0), 1.3 * max(right, 1.0))
        plain(axes)
    grid[-1].set_xlabel("overhead over identity, in floors (the two matrix products alone)")
    figure.savefig(path, dpi=110)


def draw_scaling(scaling: list[Scaling], path: Path) -> None:
    """Draw the time of one site against n and against d, with the fitted exponents."""
    figure, grid = panels(len(scaling), (9.6, 3.8))
    for axes, found in zip(grid, scaling, strict=True):
        milliseconds = [seconds * 1e3 for seconds in found.seconds]
        middle = len(found.sizes) // 2
        fitted = [
            milliseconds[middle] * (size / found.sizes[middle]) ** found.exponent
            for size in found.sizes
        ]
        axes.loglog(found.sizes, fitted, "--", color=_LINE, linewidth=1, label="fit")
        axes.loglog(found.sizes, milliseconds, "o", color=_BAR, label="measured")
        axes.set_xticks(found.sizes, [f"{size:,}" for size in found.sizes], fontsize=8)
        axes.minorticks_off()
        axes.legend(frameon=False)
        other = "d" if found.varied == "n" else "n"
        axes.set_xlabel(f"{found.varied} ({other} = {found.fixed:,})")
        axes.set_ylabel("milliseconds")
        axes.set_title(f"time ∝ {found.varied}^{found.exponent:.2f}", fontsize=11, loc="left")
        plain(axes)
    figure.savefig(path, dpi=110)
