"""An ablation as Markdown, in the form of VCReg's table 7."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from .._shared.tables import (
    Writer,
    difference_and_interval,
    in_markdown,
    markdown_table,
    mean_and_spread,
    written,
)
from ..gradient import VCRegConfig
from ._records import Comparison, Row
from ._trials import to_json


def markdown(result: Comparison) -> str:
    """Return the table, the paired differences to the baseline, and what is missing."""
    rows = result.rows
    parts = [_means(result, rows), *_differences(result, rows)]
    if failed := result.failed:
        parts += [
            f"{len(failed)} of {len(result.records)} trials failed:",
            "\n".join(f"- {in_markdown(f'`{r.id}`: {r.reason}')}" for r in failed),
            "`trials/<name>/traceback.txt` in the store says where. They are run again on request "
            "only: `retry_failed`, `--retry-failed`.",
        ]
    if result.missing:
        parts.append(f"{len(result.missing)} trials are not finished.")
    if result.from_store:
        parts.append(
            f"{result.from_store} of {len(result.records)} trials were read from the store, where "
            "earlier calls had put them."
        )
    if result.damaged:
        lines = [f"- {in_markdown(line)}" for line in result.damaged]
        parts += ["Left out, until ablate runs these again:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def verdicts(result: Comparison) -> list[str]:
    """Return a sentence a metric: which placement is best, if that is known."""
    found = []
    for metric in result.metrics:
        best = _best(result, result.rows, metric)
        rows = [row for row in result.rows if id(row) in best]
        unit, write = (" %" if metric in result.percent else ""), _writer(result, rows, metric)
        found += [
            f"{in_markdown(metric)}: best with {in_markdown(row.label)}"
            + "".join(in_markdown(f", {axis} {_setting(row, axis)}") for axis in result.varying)
            + f": {mean_and_spread(row.summary(metric), write, unit)} over {len(row.by_seed)} seeds"
            for row in rows
        ]
    finished = len(result.records) - len(result.failed)
    return [*found, f"{finished} trials finished, {len(result.failed)} failed."]


def _means(result: Comparison, rows: Sequence[Row]) -> str:
    cells: list[list[str]] = [[] for _ in rows]
    for metric in result.metrics:
        unit = " %" if metric in result.percent else ""
        write, best = _writer(result, rows, metric), _best(result, rows, metric)
        for row, line in zip(rows, cells, strict=True):
            text = mean_and_spread(row.summary(metric), write, unit) + _counts(row, metric)
            line.append(f"**{text}**" if id(row) in best else text)
    for row, line in zip(rows, cells, strict=True):
        line.append(str(len(row.by_seed)))
    note = "Mean ± standard deviation over seeds; the best mean of each column is bold."
    if any(row.not_finite(metric) for row in rows for metric in result.metrics):
        note += " A row with numbers that are not finite is never the best."
    if lower := [metric for metric in result.metrics if metric in result.lower_is_better]:
        note += f" Lower is better: {in_markdown(', '.join(lower))}."
    declared = result.lower_is_better | result.higher_is_better
    if unknown := [metric for metric in result.metrics if metric not in declared]:
        note += (
            f" Nothing is bold for {in_markdown(', '.join(unknown))}, of which it is not known "
            "whether higher or lower is better: higher_is_better=, lower_is_better= say so."
        )
    if len({frozenset(row.by_seed) for row in rows}) > 1:
        note += " Rows differ in their seeds; the differences to the baseline compare equal seeds."
    return f"{_table(result, rows, cells, 'seeds')}\n\n{note}"


def _differences(result: Comparison, rows: Sequence[Row]) -> list[str]:
    """Return the differences of rows that have a baseline with the same settings of the user's."""
    baselines = {to_json(row.params): row for row in rows if row.is_baseline}
    others = ((row, baselines.get(to_json(row.params))) for row in rows if not row.is_baseline)
    pairs = [(row, base) for row, base in others if base is not None]
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
    taken = {*result.varying, *more}
    header = ["Architecture" if result.title else "Placement", *result.varying]
    header += [beside(metric, taken) for metric in result.metrics]
    body = []
    for row, found in zip(rows, cells, strict=True):
        name = row.label
        if result.title:
            name = result.title if row.is_baseline else f"{result.title} ({row.label})"
        settings = (_setting(row, axis) for axis in result.varying)
        body.append([name, *settings, *found])
    return markdown_table([*header, *more], body, 1 + len(result.varying))


def beside(metric: str, taken: Collection[str]) -> str:
    """Return the name of a metric's column beside other columns."""
    return f"metric {metric}" if metric in taken else metric


def _setting(row: Row, axis: str) -> str:
    """Return a setting of a row: the default of VCReg's, where the row says nothing of it."""
    default = "" if row.is_baseline else getattr(VCRegConfig, axis, "")
    return str(row.settings.get(axis, default))


def _writer(result: Comparison, rows: Sequence[Row], metric: str) -> Writer:
    """Return what writes a metric's numbers, with equally many decimals in all rows.

    Four digits in all, and one behind the point for percentages, as in the paper.
    """
    if metric in result.percent:
        return lambda value, sign: written(100 * value, 1, sign)
    largest = max((abs(v) for row in rows for v in row.values(metric).values()), default=1.0)
    digits = 3 - math.floor(math.log10(largest)) if largest > 0 else 3
    return lambda value, sign: written(value, min(max(digits, 0), 6), sign)


def _counts(row: Row, metric: str) -> str:
    """Return how many seeds a mean is of, where it is not all of the row's."""
    found, lost = len(row.values(metric)), row.not_finite(metric)
    notes = [f"n = {found}"] if found < len(row.by_seed) else []
    notes += [f"{lost} not finite"] if lost else []
    return f" ({', '.join(notes)})" if notes else ""


def _best(result: Comparison, rows: Sequence[Row], metric: str) -> set[int]:
    """Return the ids of the rows with the best mean, where one is known and nothing diverged."""
    if metric not in result.lower_is_better | result.higher_is_better:
        return set()
    means = [
        (row.summary(metric).mean, id(row))
        for row in rows
        if row.values(metric) and not row.not_finite(metric)
    ]
    if len(means) < 2:
        return set()
    pick = min if metric in result.lower_is_better else max
    best = pick(mean for mean, _ in means)
    return {row for mean, row in means if mean == best}
