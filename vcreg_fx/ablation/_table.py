"""An ablation as Markdown, in the form of VCReg's table 7."""

from __future__ import annotations

import math

from .._shared.statistics import Difference, Summary
from .._shared.tables import markdown_table
from ._records import Comparison, Row, baseline_of


def markdown(result: Comparison) -> str:
    """Return the table, the paired differences to the baseline, and what is missing."""
    parts = [_means(result)]
    if any(not row.is_baseline and baseline_of(row, result.rows) for row in result.rows):
        parts.append(_differences(result))
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


def _means(result: Comparison) -> str:
    header = [_title(result), *result.varying, *result.metrics, "seeds"]
    best = {metric: _best(result, metric) for metric in result.metrics}
    body = []
    for row in result.rows:
        cells = []
        for metric in result.metrics:
            text = _mean(row.summary(metric), _Form(result, metric))
            cells.append(f"**{text}**" if row in best[metric] else text)
        body.append([_name(result, row), *_settings(result, row), *cells, str(len(row.by_seed))])
    note = "Mean ± standard deviation over seeds; the best mean of each column is bold."
    if lower := [metric for metric in result.metrics if metric in result.lower_is_better]:
        note += f" Lower is better: {', '.join(lower)}."
    if len({frozenset(row.by_seed) for row in result.rows}) > 1:
        note += " Rows differ in their seeds; the differences to the baseline compare equal seeds."
    return f"{markdown_table(header, body, 1 + len(result.varying))}\n\n{note}"


def _differences(result: Comparison) -> str:
    header = [_title(result), *result.varying, *result.metrics]
    body = []
    for row in result.rows:
        baseline = baseline_of(row, result.rows)
        if row.is_baseline or baseline is None:
            continue
        cells = [
            _difference(row.difference(metric, baseline), _Form(result, metric))
            for metric in result.metrics
        ]
        body.append([_name(result, row), *_settings(result, row), *cells])
    note = (
        "Difference to the baseline, paired by seed, with its 95 % confidence interval (t "
        "distribution); an interval without 0 is bold."
    )
    return f"{note}\n\n{markdown_table(header, body, 1 + len(result.varying))}"


class _Form:
    """How a metric's numbers are written."""

    def __init__(self, result: Comparison, metric: str) -> None:
        self.percent = metric in result.percent
        values = [abs(v) for row in result.rows for v in row.values(metric).values()]
        largest = max(values, default=1.0) * (100 if self.percent else 1)
        # Four digits in all, and one behind the point for percentages, as in the paper.
        digits = 3 - math.floor(math.log10(largest)) if largest > 0 else 3
        self.decimals = 1 if self.percent else min(max(digits, 0), 6)

    def text(self, value: float, sign: str = "") -> str:
        """Return a number without its unit."""
        if math.isnan(value):
            return "–"
        rounded = round(value * (100 if self.percent else 1), self.decimals) + 0.0  # no −0
        return f"{rounded:{sign}.{self.decimals}f}".replace("-", "−")


def _mean(found: Summary, form: _Form) -> str:
    if not found.count:
        return "–"
    unit = " %" if form.percent else ""
    spread = f" ± {form.text(found.std)}" if found.count > 1 else ""
    return f"{form.text(found.mean)}{spread}{unit}"


def _difference(found: Difference, form: _Form) -> str:
    if not found.count:
        return "–"
    mean = form.text(found.mean, "+")
    if math.isnan(found.low):
        return mean
    text = f"{mean} [{form.text(found.low, '+')}, {form.text(found.high, '+')}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def _best(result: Comparison, metric: str) -> list[Row]:
    means = [(row.summary(metric).mean, row) for row in result.rows if row.values(metric)]
    if len(means) < 2:
        return []
    pick = min if metric in result.lower_is_better else max
    best = pick(mean for mean, _ in means)
    return [row for mean, row in means if mean == best]


def _title(result: Comparison) -> str:
    return "Architecture" if result.title else "Placement"


def _name(result: Comparison, row: Row) -> str:
    if not result.title:
        return row.label
    return result.title if row.is_baseline else f"{result.title} ({row.label})"


def _settings(result: Comparison, row: Row) -> list[str]:
    return [str(row.settings.get(name, "")) for name in result.varying]
