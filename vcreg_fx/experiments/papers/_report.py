"""The report of an experiment as plain data: everything that its tables are made of."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ._experiment import Experiment
from ._study import Found


def make_report(
    experiment: Experiment, asked: dict[str, Any], found: list[Found], scale: str
) -> dict[str, Any]:
    """Return the report.

    **Arguments:**

    - `asked`: ``experiment``, ``data`` and ``preset``.
    - `found`: what the study found, the arm first that others are compared with.
    - `scale`: of the preset.
    """
    records = [record for part in found for record in part.records]
    report = {
        **asked,
        "scale": scale,
        "title": experiment.title,
        "summary": experiment.summary,
        "metrics": [dataclasses.asdict(metric) for metric in experiment.metrics],
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
                "settings": part.chosen,
                "sites": len(part.records[0].sites),
                "seconds": round(sum(r.seconds for r in part.records) / len(part.records), 1),
                "by_seed": {str(record.seed): record.metrics for record in part.records},
                "trials": [record.id for record in part.records],
            }
            for part in found
        ],
        "versions": records[0].versions,
    }
    plain: dict[str, Any] = json.loads(json.dumps(report))
    return plain
