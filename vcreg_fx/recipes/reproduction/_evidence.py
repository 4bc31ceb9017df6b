"""The results in the documentation: numbers and pictures, and the generated parts of a page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import ReproductionError
from ._render import render

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
    page.write_text(_pattern(name).sub(lambda found: f"{found[1]}{new}{found[3]}", text), "utf-8")
    return written


def section(report: dict[str, Any]) -> str:
    """Return the generated part of the page for a report."""
    name = report["experiment"]
    return f"\n{render(report)}\n![{report['title']}](evidence/{name}.png)\n"


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
