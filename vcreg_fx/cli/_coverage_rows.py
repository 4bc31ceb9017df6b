"""Coverage, a row a model: what a rule found there, in what time, or why not."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from placement_rules import PlacementError, RecordingError

from ..surgery import Plan, plan
from ._model import load_model
from ._zoo import build


@dataclass(frozen=True)
class Row:
    """One model.

    **Attributes:**

    - `sites`: how many sites; 0 if there are none.
    - `forms`, `layouts`: which forms and layouts occur, with their counts.
    - `seconds`: from the built model to the plan.
    - `outcome`: ``"planned"``, ``"refused"`` (with the reason) or ``"failed"`` (an internal error).
    """

    model: str
    rule: str
    outcome: str
    sites: int = 0
    forms: str = ""
    layouts: str = ""
    seconds: float = 0.0
    reason: str = ""


def measure(name: str, rule: str) -> Row:
    """Plan a rule on one model of the zoo."""
    start = time.perf_counter()
    try:
        model, inputs = build(name)
        start = time.perf_counter()
        try:
            planned = plan(model, rule, example_inputs=inputs)
        except RecordingError:
            if not any(parameter.is_meta for parameter in model.parameters()):
                raise
            start = time.perf_counter()
            planned = plan(load_model(name), rule, example_inputs=inputs)
    except PlacementError as error:
        return Row(name, rule, "refused", seconds=_since(start), reason=str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Row(name, rule, "failed", seconds=_since(start), reason=reason)
    return _planned(name, rule, planned, _since(start))


def summary(rows: list[Row]) -> str:
    """Return the counts and times of the rows as two lines."""
    outcomes = Counter(row.outcome for row in rows)
    planned, total = outcomes["planned"], len(rows)
    share = 100 * planned / max(total, 1)
    counts = (
        f"{planned} of {total} models planned ({share:.1f} %), {outcomes['refused']} refused with "
        f"a reason, {outcomes['failed']} failed."
    )
    seconds = [row.seconds for row in rows]
    if len(seconds) < 2:
        return counts
    return (
        f"{counts}\nSeconds a model: median {median(seconds):.2f}, 95th percentile "
        f"{quantiles(seconds, n=20)[-1]:.2f}, most {max(seconds):.2f}."
    )


def read_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier run; none if the file does not exist."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows, in one step, so that a run that is stopped leaves a whole file."""
    import timm
    import torch
    import torchvision

    versions = {package.__name__: package.__version__ for package in (torch, torchvision, timm)}
    data = {"versions": versions, "rows": [asdict(row) for row in rows]}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _planned(name: str, rule: str, planned: Plan, seconds: float) -> Row:
    sites = planned.sites
    return Row(
        name,
        rule,
        "planned",
        len(sites),
        _count(site.form for site in sites),
        _count(str(site.layout) for site in sites),
        seconds,
    )


def _count(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ", ".join(f"{count} {value}" for value, count in sorted(counts.items()))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
