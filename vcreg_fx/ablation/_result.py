"""What an ablation found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._shared.report import Report
from ._plots import MOST_ROWS, draw_heatmaps, draw_placements
from ._records import Comparison
from ._store import Store
from ._table import beside, markdown, verdicts
from ._task import LOOK
from ._trials import COLUMNS


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
        if self.metrics and len(self.rows) <= MOST_ROWS:
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
