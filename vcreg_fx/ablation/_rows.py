"""The rows of an ablation's table: trials that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._record import Record, is_number
from ._statistics import Difference, Summary, paired_difference, summarize
from ._trial import BASELINE, to_json


@dataclass(frozen=True)
class Row:
    """The trials of one placement with one choice of settings.

    **Attributes:**

    - `label`: of the rule.
    - `config`, `params`: the settings.
    - `by_seed`: seed → the metrics of the trial that finished well.
    """

    label: str
    config: dict[str, Any]
    params: dict[str, Any]
    by_seed: dict[int, dict[str, float]]

    @property
    def is_baseline(self) -> bool:
        """Whether these are the trials without VCReg."""
        return self.label == BASELINE

    def values(self, metric: str) -> dict[int, float]:
        """Return seed → value of a metric, where it is a finite number."""
        found = {seed: m[metric] for seed, m in self.by_seed.items() if metric in m}
        return {seed: value for seed, value in found.items() if is_number(value)}

    def summary(self, metric: str) -> Summary:
        """Return mean and standard deviation over seeds."""
        return summarize(list(self.values(metric).values()))

    def difference(self, metric: str, baseline: Row) -> Difference:
        """Return the difference to the baseline over the seeds that both have."""
        ours, theirs = self.values(metric), baseline.values(metric)
        seeds = [seed for seed in ours if seed in theirs]
        return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])


def make_rows(records: Sequence[Record]) -> list[Row]:
    """Return one row for each placement and choice of settings, in the order of the records."""
    rows: dict[str, Row] = {}
    for record in records:
        key = to_json([record.label, record.rule, record.config, record.params])
        row = rows.setdefault(key, Row(record.label, record.config, record.params, {}))
        if record.status == "done":
            row.by_seed[record.seed] = record.metrics
    return list(rows.values())


def baseline_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the baseline with the same settings of the user's own."""
    same = (other for other in rows if other.is_baseline and other.params == row.params)
    return next(same, None)


def metric_names(records: Sequence[Record]) -> list[str]:
    """Return the metrics of all records, in the order of their first appearance."""
    return list(dict.fromkeys(name for record in records for name in record.metrics))


def varying(records: Sequence[Record]) -> list[str]:
    """Return the settings of which there is more than one value; the baseline has no config."""
    seen: dict[str, set[str]] = {}
    for record in records:
        settings = record.params if record.label == BASELINE else {**record.config, **record.params}
        for name, value in settings.items():
            seen.setdefault(name, set()).add(to_json(value))
    return [name for name, values in seen.items() if len(values) > 1]
