"""The results in the documentation: numbers and pictures, and the generated parts of a page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import ReproductionError
from ._render import render, table
from ._words import span, verdict

SUMMARY = "summary"

if TYPE_CHECKING:
    from ._outcome import Outcome


def write_evidence(outcome: Outcome, docs: str | Path) -> list[Path]:
    """Put an outcome into ``evidence.md`` in a folder, and its files into ``evidence/`` there.

    What stands between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->`` is replaced; the
    rest of the page is left alone.

    **Returns:** the files that were written.

    **Raises:** `ReproductionError` if the page has no such place.
    """
    page, folder = Path(docs) / "evidence.md", Path(docs) / "evidence"
    name = outcome.report["experiment"]
    if "markdown" in outcome.report:
        raise ReproductionError(f"{name} is no part of {page}; its numbers are the benchmark's.")
    text = page.read_text("utf-8")
    if name not in generated(text):
        raise ReproductionError(
            f"{page} has no place for {name}: <!-- generated: {name} --> and <!-- end: {name} -->."
        )
    folder.mkdir(exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.png", page]
    for path in written[:2]:
        shutil.copyfile(outcome.folder / path.name, path)
    new = section(outcome.report)
    text = _replace(text, name, new)
    page.write_text(_replace(text, SUMMARY, summary(folder)), "utf-8")
    return written


def summary(folder: Path) -> str:
    """Return a table of what all reports in a folder say."""
    reports = [read_report(path) for path in sorted(folder.glob("*.json"))]
    body = []
    for report in reports:
        metric = next(m for m in report["metrics"] if m["name"] == report["headline"][0])
        first, *others = report["rows"]
        for row in others:
            if row["rule"] is not None:
                said = span(row, first, metric), verdict(row, first, metric)
                body.append([report["experiment"], row["name"], metric["title"], *said])
    header = ["experiment", "arm", "measured", "difference to none, 95 % interval", "so"]
    return f"\n{table(header, body)}\n\n"


def _replace(text: str, name: str, new: str) -> str:
    return _pattern(name).sub(lambda found: f"{found[1]}{new}{found[3]}", text)


def section(report: dict[str, Any]) -> str:
    """Return the generated part of the page for a report."""
    name = report["experiment"]
    return f"\n{render(report)}\n![{report['title']}](evidence/{name}.png)\n\n"


def generated(text: str) -> dict[str, str]:
    """Return experiment → generated part of a page."""
    return {found[1]: _pattern(found[1]).search(text)[2] for found in _starts(text)}  # type: ignore[index]


def read_report(path: Path) -> dict[str, Any]:
    """Return a report from its JSON file."""
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return report


def _starts(text: str) -> list[re.Match[str]]:
    found = list(re.finditer(r"<!-- generated: ([a-z-]+) -->", text))
    return [match for match in found if _pattern(match[1]).search(text)]


def _pattern(name: str) -> re.Pattern[str]:
    name = re.escape(name)
    return re.compile(rf"(<!-- generated: {name} -->\n)(.*?)(<!-- end: {name} -->)", re.DOTALL)
