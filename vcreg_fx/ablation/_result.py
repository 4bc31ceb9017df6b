"""What an ablation found, and its pictures."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._shared.pictures import head, panels
from .._shared.report import Report
from .._shared.statistics import summarize
from ._records import Comparison, Row
from ._store import Store
from ._table import beside, markdown, verdicts
from ._task import LOOK
from ._trials import COLUMNS, AblationError, in_one_line


@dataclass(frozen=True)
class AblationResult(Comparison):
    """The finished trials of an ablation. Printing it shows its table, in Markdown.

    **Attributes:**

    - `records`, `missing`: the finished trials in the order in which they were asked for, and the
      names of those that are not finished, as of other shards.
    - `rows`, `metrics`, `varying`, `failed`: what the table shows of them.
    - `store`: the folder.
    - `from_store`: how many of the records were there before the call that made this result.
    - `damaged`: what of the store cannot be read, and why.
    - `title`, `higher_is_better`, `lower_is_better`, `percent`: how the table is to look.
    """

    @classmethod
    def read(
        cls,
        store: Store,
        trials: Sequence[str] | None = None,
        notes: Mapping[str, Any] | None = None,
        before: Collection[str] | None = None,
    ) -> AblationResult:
        """Return what a store holds of some trials; by default, of all.

        **Arguments:**

        - `notes`: how to show them; by default as the last call noted.
        - `before`: the trials that an earlier call had finished; by default all.

        **Raises:** `AblationError` if there is no store.
        """
        store.require()
        if notes is None:
            notes = (store.plans() or [{}])[-1]
        records = store.records(trials)
        found = [record.id for record in records]
        look: dict[str, Any] = {name: frozenset(notes.get(name, ())) for name in LOOK}
        return cls(
            records,
            store.missing(records, trials),
            store.path,
            notes.get("title", ""),
            **look,
            from_store=len(found if before is None else {*found} & {*before}),
            damaged=tuple(str(error) for error in store.damaged.values()),
        )

    def to_markdown(self) -> str:
        """Return a table in the form of VCReg's table 7.

        Mean ± standard deviation over seeds, the best mean in bold; then the differences to the
        baseline, paired by seed, with 95 % confidence intervals.
        """
        return markdown(self)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, a row a trial: label, axes, seed, metrics and the rest.

        A metric with the name of another column, such as ``seed``, is called ``metric seed``.

        **Raises:** `ModuleNotFoundError` if pandas is missing: ``pip install vcreg-fx[ablation]``.
        """
        import pandas

        settings = [{**record.config, **record.params} for record in self.records]
        taken = {*COLUMNS, *(name for given in settings for name in given)}
        rows = [
            {
                "label": record.label,
                "rule": record.rule,
                **record.config,
                **record.params,
                "seed": record.seed,
                **{beside(name, taken): value for name, value in record.metrics.items()},
                "status": record.status,
                "sites": len(record.sites),
                "seconds": record.seconds,
                "id": record.id,
            }
            for record in self.records
        ]
        return pandas.DataFrame(rows)

    def plot(self, path: str | Path, metrics: Sequence[str] | None = None) -> None:
        """Draw every metric of every placement: seeds, mean and standard deviation.

        **Arguments:**

        - `path`: where the picture goes; its ending says in which format.
        - `metrics`: which; by default all.

        **Raises:** `AblationError` if there is nothing to draw.
        """
        draw_placements(self, Path(path), metrics)

    def plot_heatmap(
        self, path: str | Path, metric: str, x: str = "alpha", y: str = "beta"
    ) -> None:
        """Draw the mean of one metric over two axes, one map a placement.

        **Arguments:**

        - `path`: where the picture goes; its ending says in which format.
        - `metric`: the metric.
        - `x`, `y`: the axes.

        **Raises:** `AblationError` if the metric or an axis does not exist.
        """
        draw_heatmaps(self, Path(path), metric, x, y)

    def write(self) -> list[Path]:
        """Write ``report.html``, ``report.md`` and pictures beside the trials.

        **Returns:** the paths, that of the page last.
        """
        pictures, body = [], [self.to_markdown()]
        if self.metrics and len(self.rows) <= _MOST_ROWS:
            pictures.append(self.store / "placements.png")
            self.plot(pictures[0])
            if {"alpha", "beta"} <= set(self.varying):
                pictures.append(self.store / "alpha_beta.png")
                self.plot_heatmap(pictures[1], self.metrics[0])
                body.append(f"![{self.metrics[0]} over α and β](alpha_beta.png)")
        figure = ("Every metric of every placement: seeds, mean, spread", "placements.png")
        report = Report(
            self.title or "Ablation", verdicts(self), figure if pictures else None,
            "\n\n".join(body),
        )  # fmt: skip
        return [*pictures, *report.write(self.store)]

    def __str__(self) -> str:
        """Return the table."""
        return self.to_markdown()


def report(store: str | Path) -> AblationResult:
    """Return everything that a store holds, of all the calls that worked on it.

    **Raises:** `AblationError` if there is no store.
    """
    return AblationResult.read(Store(store))


# Its pictures ---------------------------------------------------------------------------------

_MOST_ROWS = 300  # of a picture
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
    if len(rows) > _MOST_ROWS:
        raise AblationError(
            f"A picture has room for {_MOST_ROWS} rows, and there are {len(rows)}. Ablate fewer "
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
