"""What an ablation found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._record import Record
from ._rows import Row, make_rows, metric_names, varying
from ._store import Store


@dataclass(frozen=True)
class AblationResult:
    """The finished trials of an ablation. Printing it shows its table, in Markdown.

    **Attributes:**

    - `records`: one a trial, in the order in which they were asked for.
    - `missing`: the names of trials that are not finished, as those of other shards.
    - `store`: the folder.
    - `title`, `lower_is_better`, `percent`: how the table is to look.
    """

    records: list[Record] = field(repr=False)
    missing: list[str] = field(repr=False)
    store: Path
    title: str = ""
    lower_is_better: frozenset[str] = frozenset()
    percent: frozenset[str] = frozenset()

    @classmethod
    def read(cls, store: Store, trials: Sequence[str] | None = None) -> AblationResult:
        """Return what a store holds of some trials; by default, of all.

        **Raises:** `AblationError` if there is no store.
        """
        store.require()
        notes = (store.plans() or [{}])[-1]
        if trials is None:
            records, missing = store.records(), store.missing()
        else:
            records = [store.read(trial) for trial in trials if store.is_done(trial)]
            missing = [trial for trial in trials if not store.is_done(trial)]
        return cls(
            records,
            missing,
            store.path,
            notes.get("title", ""),
            frozenset(notes.get("lower_is_better", ())),
            frozenset(notes.get("percent", ())),
        )

    @property
    def rows(self) -> list[Row]:
        """The rows of the table: trials that differ in their seed alone."""
        return make_rows(self.records)

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics."""
        return metric_names(self.records)

    @property
    def varying(self) -> list[str]:
        """The axes that have more than one value."""
        return varying(self.records)

    @property
    def failed(self) -> list[Record]:
        """The trials that failed."""
        return [record for record in self.records if record.status == "failed"]

    def to_markdown(self) -> str:
        """Return a table in the form of VCReg's table 7.

        Mean ± standard deviation over seeds, the best mean in bold; then the differences to the
        baseline, paired by seed, with 95 % confidence intervals.
        """
        from ._table import markdown

        return markdown(self)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, a row a trial: label, axes, seed, metrics and the rest.

        **Raises:** `ModuleNotFoundError` if pandas is missing: ``pip install vcreg-fx[ablation]``.
        """
        import pandas

        rows = [
            {
                "label": record.label,
                "rule": record.rule,
                **record.config,
                **record.params,
                "seed": record.seed,
                **record.metrics,
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
        from ._plots import draw_placements

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
        from ._plots import draw_heatmaps

        draw_heatmaps(self, Path(path), metric, x, y)

    def __str__(self) -> str:
        """Return the table."""
        return self.to_markdown()


def report(store: str | Path) -> AblationResult:
    """Return everything that a store holds, of all the calls that worked on it.

    **Raises:** `AblationError` if there is no store.
    """
    return AblationResult.read(Store(store))
