"""What an experiment found, and the files it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._experiment import Experiment
from ._render import render


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
    (folder / f"{experiment.name}.json").write_text(text + "\n", "utf-8")
    (folder / f"{experiment.name}.md").write_text(render(report), "utf-8")
    experiment.draw(report, folder / f"{experiment.name}.png")
    return Outcome(report, folder)
