"""What an experiment found: its folder, its report, and its place in the documentation."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._shared.files import remove_unfinished, write_text
from ..._shared.report import to_html
from ..._shared.tables import markdown_table
from ._experiment import Experiment, Preset, ReproductionError
from ._render import UNTESTED, compared, directed, render, said, span, verdict
from ._study import Found

_NAME = "experiment.json"
SUMMARY = "summary"  # the part of the page that is made of all reports
_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)
_FREE = ("seeds",)  # more seeds may be added to what is there
_FREE_TRAINING = ("workers", "device")


def claim_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Make the folder of an experiment, or check that it is this one's.

    **Arguments:**

    - `asked`: ``experiment``, ``data``, ``preset`` and ``identity``, as plain data. What of the
      last the folder does not say, as of a version that did not write it, cannot be compared.

    **Raises:** `ReproductionError` if it holds another experiment, other settings or other data;
    `OSError` if it cannot be made.
    """
    path = folder / _NAME
    mine = json.loads(json.dumps(_comparable(asked)))
    remove_unfinished(path)
    if path.exists():
        try:
            theirs = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ReproductionError(
                f"{path}, which says what the folder holds, is damaged: {error}. Choose another "
                "folder with -o, or remove this one."
            ) from error
        known, here = theirs.pop("identity", {}), mine.pop("identity")
        other = [f"other {name}" for name in here
                 if known.get(name, here[name]) != here[name]]  # fmt: skip
        if other := _differences(theirs, mine) + other:
            raise ReproductionError(
                f"{folder} holds another experiment: {'; '.join(other)}. Choose another folder "
                "with -o, or remove it."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ReproductionError(
            f"{folder} is not empty, and holds no experiment. Choose another folder with -o."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(mine, indent=2, ensure_ascii=False) + "\n")


def _comparable(asked: dict[str, Any]) -> dict[str, Any]:
    preset = {name: value for name, value in asked["preset"].items() if name not in _FREE}
    training = {k: v for k, v in preset["training"].items() if k not in _FREE_TRAINING}
    return {**asked, "preset": {**preset, "training": training}}


def _differences(theirs: dict[str, Any], mine: dict[str, Any], where: str = "") -> list[str]:
    found = []
    for name in sorted({*theirs, *mine}):
        a, b = theirs.get(name), mine.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{where}{name}.")
        elif a != b:
            found.append(f"{where}{name} is {a!r} there, {b!r} here")
    return found


def make_report(
    experiment: Experiment,
    preset: Preset,
    asked: dict[str, Any],
    found: list[Found],
    scale: str,
    command: str | None,
) -> dict[str, Any]:
    """Return the report.

    **Arguments:**

    - `preset`: what was done.
    - `asked`: ``experiment``, ``data``, ``preset`` and ``identity``.
    - `found`: what the study found, the arm first that others are compared with.
    - `scale`: of the preset.
    - `command`: that repeats it; None where it was started from Python with what none can say.
    """
    records = [record for part in found for record in part.records]
    report = {
        **asked,
        "scale": scale,
        "title": experiment.title,
        "summary": experiment.summary,
        "metrics": [dataclasses.asdict(metric) for metric in experiment.measured(preset)],
        "criterion": experiment.criterion,
        "headline": experiment.headline,
        "rival": experiment.rival,
        "paper": dataclasses.asdict(experiment.paper),
        "search": [
            {"name": part.arm.name, "attempts": part.attempts, "chosen": part.chosen}
            for part in found
        ],
        "rows": [
            {
                "name": part.arm.name,
                "rule": part.arm.rule,
                **({"versus": part.arm.versus} if part.arm.versus else {}),
                "settings": part.arm.fixed if part.chosen is None else part.chosen,
                "sites": len(part.records[0].sites) if part.records else None,
                "seconds": round(sum(r.seconds for r in part.records) / len(part.records), 1)
                if part.records
                else None,
                "by_seed": {str(record.seed): record.metrics for record in part.finished},
                "trials": [record.id for record in part.finished],
                "diverged": len(part.records) - len(part.finished),
                **({"untested": UNTESTED} if part.chosen is None else {}),
            }
            for part in found
        ],
        "command": command,
        "versions": records[0].versions,
    }
    plain: dict[str, Any] = json.loads(json.dumps(report))
    return plain


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    **Attributes:**

    - `report`: everything as plain data, as in ``NAME.json``.
    - `folder`: with ``NAME.json``, ``NAME.md``, ``NAME.png`` and the store of all trials.
    """

    report: dict[str, Any]
    folder: Path

    def to_markdown(self) -> str:
        """Return the tables and what they say."""
        if "markdown" in self.report:
            return str(self.report["markdown"])
        return render(self.report)

    def __str__(self) -> str:
        """Return the tables and what they say."""
        return self.to_markdown()


def write_outcome(experiment: Experiment, report: dict[str, Any], folder: Path) -> Outcome:
    """Write the report, its tables and its picture."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text(folder / f"{experiment.name}.json", text + "\n")
    write_text(folder / f"{experiment.name}.md", render(report))
    experiment.draw(report, folder / f"{experiment.name}.png")
    title, body = report["title"], render(report, verdicts=False)
    text = f"# {title}\n\n{said(report)}\n\n![{title}]({experiment.name}.png)\n\n{body}"
    write_text(folder / "report.html", to_html(text, folder))
    return Outcome(report, folder)


def write_evidence(outcome: Outcome, docs: str | Path) -> list[Path]:
    """Put an outcome into ``evidence.md`` in a folder, and its files into ``evidence/`` there.

    What stands between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->`` is replaced; the
    rest of the page is left alone.

    **Returns:** the files that were written.

    **Raises:** `ReproductionError` if the page has no such place, or the run is of another scale
    than the page's, ``"default"``.
    """
    page, folder = Path(docs) / "evidence.md", Path(docs) / "evidence"
    name = outcome.report["experiment"]
    if "markdown" in outcome.report:
        raise ReproductionError(f"{name} is no part of {page}; its numbers are the benchmark's.")
    check_place(name, outcome.report["scale"], docs)
    text = page.read_text("utf-8")
    folder.mkdir(exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.png", page]
    for path in written[:2]:
        shutil.copyfile(outcome.folder / path.name, path)
    new = section(outcome.report)
    text = _replace(text, name, new)
    page.write_text(_replace(text, SUMMARY, summary(folder)), "utf-8")
    return written


def check_place(name: str, scale: str, docs: str | Path) -> None:
    """Refuse a run that the page has no place for.

    **Raises:** `ReproductionError`; `OSError` if there is no page.
    """
    page = Path(docs) / "evidence.md"
    if name not in generated(page.read_text("utf-8")):
        raise ReproductionError(
            f"{page} has no place for {name}: <!-- generated: {name} --> and <!-- end: {name} -->."
        )
    if scale != "default":
        raise ReproductionError(
            f"{page} is of runs of the default scale, and this one is {scale}: leave --evidence "
            "out, or the scale."
        )


def summary(folder: Path) -> str:
    """Return a table of what all reports in a folder say."""
    reports = [read_report(path) for path in sorted(folder.glob("*.json"))]
    body = []
    for report in reports:
        metrics = {metric["name"]: metric for metric in report["metrics"]}
        metric = next(metrics[name] for name in report["headline"] if name in metrics)
        for row, first in compared(report):
            if row["rule"] is not None:
                said = verdict(row, first, metric), span(row, first, metric)
                names = report["experiment"], row["name"], first["name"]
                body.append([*names, directed(metric), *said])
    header = ["experiment", "arm", "compared with", "measured", "so", "difference, 95 % interval"]
    return f"\n{markdown_table(header, body, text=5)}\n\n"


def _replace(text: str, name: str, new: str) -> str:
    return _PART.sub(lambda part: f"{part[1]}{new}{part[4]}" if part[2] == name else part[0], text)


def section(report: dict[str, Any]) -> str:
    """Return the generated part of the page for a report."""
    name = report["experiment"]
    return f"\n{render(report)}\n![{report['title']}](evidence/{name}.png)\n\n"


def generated(text: str) -> dict[str, str]:
    """Return experiment → generated part of a page."""
    return {part[2]: part[3] for part in _PART.finditer(text)}


def read_report(path: Path) -> dict[str, Any]:
    """Return a report from its JSON file."""
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return report
