"""A report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ._numbers import difference_of, summary_of
from ._words import conclusions, how, repeat, searched

_MOST_CLASSES = 20  # in a table
_NOTE = (
    "Paired by seed, with the 95 % interval of the t-test; percentages in points. An interval "
    "without 0 is bold. No correction is made for the number of comparisons."
)


def render(report: dict[str, Any]) -> str:
    """Return what was done, our numbers, the paper's, the differences, and what they say."""
    parts = [
        how(report),
        _ours(report),
        _differences(report, report["rows"][0], report["rows"][1:]),
        _NOTE,
        _rival(report),
        _per_class(report),
        "\n".join(f"- {sentence}" for sentence in conclusions(report)),
        _paper(report),
        searched(report),
        repeat(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        metric
        for metric in report["metrics"]
        if any(summary_of(row, metric["name"]).count for row in report["rows"])
    ]


def _ours(report: dict[str, Any]) -> str:
    metrics = _shown(report)
    header = ["ours", *(metric["title"] for metric in metrics), "seeds"]
    body = []
    for row in report["rows"]:
        found = [summary_of(row, metric["name"]) for metric in metrics]
        cells = [
            f"{number(s.mean, m)} ± {number(s.std, m)}{' %' * m['percent']}"
            if s.count > 1
            else number(s.mean, m)
            for s, m in zip(found, metrics, strict=True)
        ]
        body.append([row["name"], *cells, str(len(row["by_seed"]))])
    return f"{table(header, body)}\n\nMean ± standard deviation over seeds, on the test data."


def _rival(report: dict[str, Any]) -> str:
    """Return the differences of VCReg to the arm that it is to be compared with, too."""
    rows = [row for row in report["rows"] if row["name"] == report.get("rival")]
    ours = [row for row in report["rows"] if row["rule"] is not None]
    return _differences(report, rows[0], ours) if rows else ""


def _differences(report: dict[str, Any], first: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    metrics, body = _shown(report), []
    for row in rows:
        cells = []
        for metric in metrics:
            found = difference_of(row, first, metric["name"])
            text = f"{number(found.mean, metric, '+')} [{number(found.low, metric, '+')}, "
            text += f"{number(found.high, metric, '+')}]"
            sure = found.low > 0 or found.high < 0
            cells.append(f"**{text}**" if sure else text)
        body.append([row["name"], *cells])
    header = [f"difference to {first['name']}", *(metric["title"] for metric in metrics)]
    return table(header, body)


def _per_class(report: dict[str, Any]) -> str:
    """Return the mean accuracy of each class, where it was measured and there are not too many."""
    metrics = next(iter(report["rows"][0]["by_seed"].values()))
    names = sorted((k for k in metrics if k.startswith("class_")), key=lambda k: int(k[6:]))
    if not 0 < len(names) <= _MOST_CLASSES:
        return ""
    header = ["accuracy of class, in %", *(name[6:] for name in names)]
    body = [
        [row["name"], *(f"{100 * summary_of(row, name).mean:.1f}" for name in names)]
        for row in report["rows"]
    ]
    return table(header, body)


def _paper(report: dict[str, Any]) -> str:
    paper = report["paper"]
    if not paper["rows"]:
        return f"The paper ({paper['where']}): {paper['protocol']}" if paper["protocol"] else ""
    header = [f"the paper, {paper['where']}", *paper["columns"]]
    body = [[name, *(f"{value:g}" for value in values)] for name, values in paper["rows"].items()]
    notes = [text for text in (f"In {paper['unit']}." if paper["unit"] else "",) if text]
    notes.append(paper["protocol"])
    return f"{table(header, body)}\n\n{' '.join(note for note in notes if note)}"


def number(value: float, metric: dict[str, Any], sign: str = "") -> str:
    """Return a number as it is shown, without its unit."""
    if not math.isfinite(value):
        return "–"
    scaled = value * (100 if metric["percent"] else 1)
    decimals = 2 if metric["percent"] or abs(scaled) >= 1 else 3
    return f"{round(scaled, decimals) + 0.0:{sign}.{decimals}f}".replace("-", "−")


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the first column is text."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    rows = [header, rule, *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
