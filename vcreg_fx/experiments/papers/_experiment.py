"""What makes an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._arm import Arm
from ._preset import Preset


@dataclass(frozen=True)
class Metric:
    """A number that an experiment reports.

    **Attributes:**

    - `name`, `title`: in the records, and in tables.
    - `percent`: shown as percentages.
    - `higher`: whether larger values are those that one wants; None where it is no question of
      better and worse.
    """

    name: str
    title: str
    percent: bool = False
    higher: bool | None = True


@dataclass(frozen=True)
class Paper:
    """What the paper reports.

    **Attributes:**

    - `where`: the table or figure.
    - `columns`, `rows`: its numbers; a row has one number a column.
    - `unit`: of the numbers.
    - `protocol`: how they were obtained, in short.
    """

    where: str
    columns: Sequence[str] = ()
    rows: Mapping[str, Sequence[float]] = field(default_factory=dict)
    unit: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper that can be repeated.

    **Attributes:**

    - `name`, `title`, `summary`: as it is called, as it is headed, what it does.
    - `presets`: returns the `Preset` of a scale (``"quick"``, ``"default"`` or ``"paper"``), with
      the data that was asked for, or its own choice for None.
    - `arms`: what is compared under a preset; the first is what the others are compared with.
    - `task`: makes the task of the ablation engine of preset, data, network and folder; None where
      `run` does everything by itself.
    - `metrics`: what is reported.
    - `criterion`: the metric by which the search chooses.
    - `headline`: the metrics on which conclusions are drawn.
    - `paper`: what the paper reports.
    - `draw`: draws the picture of a report.
    - `rival`: the arm that VCReg is compared with, too.
    - `own_data`: whether data is made, not loaded.
    """

    name: str
    title: str
    summary: str
    presets: Callable[[str, str | None], Preset]
    arms: Callable[[Preset], list[Arm]]
    task: Callable[..., Any]
    metrics: tuple[Metric, ...]
    criterion: str
    headline: tuple[str, ...]
    paper: Paper
    draw: Callable[[dict[str, Any], Path], None]
    rival: str | None = None
    own_data: bool = False
