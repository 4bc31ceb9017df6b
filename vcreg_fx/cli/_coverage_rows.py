"""Coverage, a row a model: what a rule found there, in what time, or why not."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from placement_rules import NoSiteError, PlacementError, RecordingError

from ..surgery import Plan, plan
from ._coverage_check import check
from ._model import load_model
from ._zoo import build


@dataclass(frozen=True)
class Row:
    """One model.

    **Attributes:**

    - `sites`: how many sites; 0 if there are none.
    - `forms`, `layouts`: which forms and layouts occur, with their counts.
    - `seconds`: from the built model to the plan.
    - `outcome`: ``"planned"``; ``"none"``, if the model has no place that the rule selects;
      ``"refused"``, if it has one that cannot be used; ``"failed"`` (an internal error), or
      ``"wrong"``, if a check found it so. All but the first with a reason.
    - `check`: what a training step gave, if one was run: the gradient's relative error.
    """

    model: str
    rule: str
    outcome: str
    sites: int = 0
    forms: str = ""
    layouts: str = ""
    seconds: float = 0.0
    reason: str = ""
    check: str = ""


def coverage_of(name: str, rule: str, *, checks: bool = False) -> Row:
    """Plan a rule on one model of the zoo; with `checks`, also insert and run a training step."""
    row = _plan(name, rule)
    if not checks or row.outcome != "planned":
        return row
    try:
        right, found = check(name, rule)
    except PlacementError as error:
        return replace(row, check=f"not checked: {error}")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return replace(row, outcome="failed", reason=reason)
    if not right:
        return replace(row, outcome="wrong", reason=found, check=found)
    return replace(row, check=found)


def _plan(name: str, rule: str) -> Row:
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
    except NoSiteError as error:
        return Row(name, rule, "none", seconds=_since(start), reason=str(error))
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
        f"{planned} of {total} models planned ({share:.1f} %), {outcomes['none']} without such a "
        f"site, {outcomes['refused']} refused with a reason, {outcomes['failed']} failed."
    )
    if checked := [row for row in rows if row.check]:
        right = sum(row.outcome == "planned" and row.check[0].isdigit() for row in checked)
        counts += (
            f"\n{right} of {len(checked)} models checked: outputs equal bit for bit, gradients of "
            f"the naive losses; {outcomes['wrong']} wrong."
        )
    seconds = [row.seconds for row in rows]
    if len(seconds) < 2:
        return counts
    return (
        f"{counts}\nSeconds a model: median {median(seconds):.2f}, 95th percentile "
        f"{quantiles(seconds, n=20)[-1]:.2f}, most {max(seconds):.2f}."
    )


def enough(row: Row, checks: bool) -> bool:
    """Whether an earlier row tells what is asked: planned ones may lack the check."""
    return not checks or bool(row.check) or row.outcome != "planned"


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
