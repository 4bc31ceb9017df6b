"""An ablation as Markdown, in the form of VCReg's table 7."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .._shared.tables import (
    Writer,
    difference_and_interval,
    markdown_table,
    mean_and_spread,
    written,
)
from ._records import Comparison, Row


def markdown(result: Comparison) -> str:
    """Return the table, the paired differences to the baseline, and what is missing."""
    rows = result.rows
    parts = [_means(result, rows), *_differences(result, rows)]
    if result.failed:
        lines = [
            f"{len(result.failed)} of {len(result.records)} trials failed:",
            "",
            *(f"- `{record.id}`: {record.reason}" for record in result.failed),
            "",
            "`trials/<name>/traceback.txt` in the store says where. They are run again on request "
            "only: `retry_failed`, `--retry-failed`.",
        ]
        parts.append("\n".join(lines))
    if result.missing:
        parts.append(f"{len(result.missing)} trials are not finished.")
    return "\n\n".join(parts) + "\n"


def _means(result: Comparison, rows: Sequence[Row]) -> str:
    cells: list[list[str]] = [[] for _ in rows]
    for metric in result.metrics:
        unit = " %" if metric in result.percent else ""
        write, best = _writer(result, rows, metric), _best(result, rows, metric)
        for row, line in zip(rows, cells, strict=True):
            text = mean_and_spread(row.summary(metric), write, unit)
            line.append(f"**{text}**" if row in best else text)
    for row, line in zip(rows, cells, strict=True):
        line.append(str(len(row.by_seed)))
    note = "Mean ± standard deviation over seeds; the best mean of each column is bold."
    if lower := [metric for metric in result.metrics if metric in result.lower_is_better]:
        note += f" Lower is better: {', '.join(lower)}."
    if len({frozenset(row.by_seed) for row in rows}) > 1:
        note += " Rows differ in their seeds; the differences to the baseline compare equal seeds."
    return f"{_table(result, rows, cells, 'seeds')}\n\n{note}"


def _differences(result: Comparison, rows: Sequence[Row]) -> list[str]:
    """Return the differences of rows that have a baseline with the same settings of the user's."""
    baselines = [row for row in rows if row.is_baseline]
    others = [row for row in rows if not row.is_baseline]
    pairs = [(row, base) for row in others for base in baselines if base.params == row.params]
    if not pairs:
        return []
    writers = {metric: _writer(result, rows, metric) for metric in result.metrics}
    cells = [
        [difference_and_interval(row.difference(m, base), write) for m, write in writers.items()]
        for row, base in pairs
    ]
    note = (
        "Difference to the baseline, paired by seed, with its 95 % confidence interval (t "
        "distribution); an interval without 0 is bold."
    )
    return [note, _table(result, [row for row, _ in pairs], cells)]


def _table(
    result: Comparison, rows: Sequence[Row], cells: Sequence[Sequence[str]], *more: str
) -> str:
    """Return a table of rows with their settings before the cells of each metric."""
    header = ["Architecture" if result.title else "Placement", *result.varying, *result.metrics]
    body = []
    for row, found in zip(rows, cells, strict=True):
        name = row.label
        if result.title:
            name = result.title if row.is_baseline else f"{result.title} ({row.label})"
        settings = (str(row.settings.get(axis, "")) for axis in result.varying)
        body.append([name, *settings, *found])
    return markdown_table([*header, *more], body, 1 + len(result.varying))


def _writer(result: Comparison, rows: Sequence[Row], metric: str) -> Writer:
    """Return what writes a metric's numbers, with equally many decimals in all rows.

    Four digits in all, and one behind the point for percentages, as in the paper.
    """
    if metric in result.percent:
        return lambda value, sign: written(100 * value, 1, sign)
    largest = max((abs(v) for row in rows for v in row.values(metric).values()), default=1.0)
    digits = 3 - math.floor(math.log10(largest)) if largest > 0 else 3
    return lambda value, sign: written(value, min(max(digits, 0), 6), sign)


def _best(result: Comparison, rows: Sequence[Row], metric: str) -> list[Row]:
    means = [(row.summary(metric).mean, row) for row in rows if row.values(metric)]
    if len(means) < 2:
        return []
    pick = min if metric in result.lower_is_better else max
    best = pick(mean for mean, _ in means)
    return [row for mean, row in means if mean == best]
