"""The records of finished trials, as they lie in the store, and the rows that they make."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from .._shared.files import printable
from .._shared.statistics import Difference, Summary, difference_of, finite_values, summary_of
from .._version import __version__
from ._trials import BASELINE, Trial, in_one_line, to_json

STORE, FORMAT = "store", 2  # of the files in a store; 1 did not say so


def check_format(said: Any) -> None:
    """Check that a file is not of a newer version.

    **Raises:** `ValueError` that says what to do.
    """
    if said is not None and int(said) > FORMAT:
        raise ValueError(
            f"a newer version of vcreg_fx wrote it, in format {said} of which this one knows "
            f"{FORMAT}; pip install -U vcreg-fx reads it"
        )


@dataclass(frozen=True)
class Record:
    """A finished trial.

    **Attributes:**

    - `id`, `label`, `seed`, `config`, `params`: as in the `Trial`.
    - `rule`: the rule as a string, None for the baseline.
    - `status`: ``"done"`` or ``"failed"``.
    - `metrics`: what `evaluate` returned; empty if it failed.
    - `traceback`: of the exception, if it failed.
    - `sites`: the names of the sites, in order.
    - `seconds`: of building, training and evaluating.
    - `versions`: of Python and the packages that took part.
    """

    id: str
    label: str
    rule: str | None
    seed: int
    config: dict[str, Any]
    params: dict[str, Any]
    status: Literal["done", "failed"]
    metrics: dict[str, float] = field(default_factory=dict)
    traceback: str | None = None
    sites: list[str] = field(default_factory=list)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: Trial, **found: Any) -> Record:
        """Return the record of a trial, with the versions of this process."""
        return cls(
            id=trial.id,
            label=trial.label,
            rule=None if trial.rule is None else str(trial.rule),
            seed=trial.seed,
            config=dict(trial.config),
            params=dict(trial.params),
            versions=_versions(),
            **found,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)

    @classmethod
    def of_data(cls, data: dict[str, Any], trial: str) -> Record:
        """Return the record of a trial from plain data.

        **Raises:** `ValueError` if it is none.
        """
        versions = data.get("versions", {})
        check_format(versions.get(STORE) if isinstance(versions, dict) else None)
        try:
            record = cls(**data)
        except TypeError as error:
            raise ValueError(f"it holds no record: {error}") from error
        kinds = {"label": str, "seed": int, "config": dict, "params": dict, "sites": list}
        wrong = [
            name for name, kind in kinds.items() if not isinstance(getattr(record, name), kind)
        ]
        numbers = record.metrics.values() if isinstance(record.metrics, dict) else [None]
        wrong += ["metrics"] * (not all(isinstance(number, Real) for number in numbers))
        wrong += ["id"] * (record.id != trial)
        wrong += ["status"] * (record.status not in {"done", "failed"})
        if wrong:
            raise ValueError(f"it holds no record of {trial}: {', '.join(wrong)} cannot be so")
        return record

    @property
    def name(self) -> str:
        """Label, settings and seed in one line, as of the `Trial`."""
        return in_one_line(self.label, {**self.config, **self.params}, self.seed)

    @property
    def reason(self) -> str:
        """The last line of the traceback: what went wrong."""
        lines = [line for line in (self.traceback or "").splitlines() if line.strip()]
        return printable(lines[-1].strip()) if lines else ""


def check_metrics(found: Any) -> dict[str, float]:
    """Return what a user's `evaluate` returned as numbers by name.

    **Raises:** `TypeError` that says what is wrong with it.
    """
    if not isinstance(found, Mapping) or not found:
        raise TypeError(f"evaluate must return a dictionary of numbers, not {found!r}.")
    numbers = {}
    for name, value in found.items():
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()  # noqa: PLW2901
        if not isinstance(name, str) or not isinstance(value, Real):
            raise TypeError(f"evaluate returned {name!r}: {value!r}, which is no number.")
        numbers[name] = float(value)
    return numbers


@dataclass(frozen=True)
class Row:
    """The trials of one placement with one choice of settings.

    **Attributes:**

    - `label`: of the rule.
    - `config`, `params`: the settings.
    - `by_seed`: seed → the metrics of the trial that finished well.
    """

    label: str
    config: dict[str, Any]
    params: dict[str, Any]
    by_seed: dict[int, dict[str, float]]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return {**self.config, **self.params}

    @property
    def is_baseline(self) -> bool:
        """Whether these are the trials without VCReg."""
        return self.label == BASELINE

    def values(self, metric: str) -> dict[int, float]:
        """Return seed → value of a metric, where it is a finite number."""
        return finite_values(self.by_seed, metric)

    def not_finite(self, metric: str) -> int:
        """Return in how many seeds a metric is there, and is no finite number."""
        given = sum(metric in found for found in self.by_seed.values())
        return given - len(self.values(metric))

    def summary(self, metric: str) -> Summary:
        """Return mean and standard deviation over seeds."""
        return summary_of(self.by_seed, metric)

    def difference(self, metric: str, baseline: Row) -> Difference:
        """Return the difference to the baseline over the seeds that both have."""
        return difference_of(self.by_seed, baseline.by_seed, metric)


@dataclass(frozen=True)
class Comparison:
    """Records side by side: what tables and pictures show. See `AblationResult`."""

    records: list[Record] = field(repr=False)
    missing: list[str] = field(repr=False)
    store: Path
    title: str = ""
    lower_is_better: frozenset[str] = frozenset()
    percent: frozenset[str] = frozenset()
    higher_is_better: frozenset[str] = frozenset()
    from_store: int = 0
    damaged: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table, in the order of the records: trials that differ in their seed."""
        rows: dict[str, Row] = {}
        for record in self.records:
            key = to_json([record.label, record.rule, record.config, record.params])
            row = rows.setdefault(key, Row(record.label, record.config, record.params, {}))
            if record.status == "done":
                row.by_seed[record.seed] = record.metrics
        return list(rows.values())

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics, in the order of their first appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record.metrics))

    @cached_property
    def varying(self) -> list[str]:
        """The axes that have more than one value; the baseline has none of VCReg's."""
        seen: dict[str, set[str]] = {}
        for record in self.records:
            config = {} if record.label == BASELINE else record.config
            for name, value in {**config, **record.params}.items():
                seen.setdefault(name, set()).add(to_json(value))
        return [name for name, values in seen.items() if len(values) > 1]

    @property
    def failed(self) -> list[Record]:
        """The trials that failed."""
        return [record for record in self.records if record.status == "failed"]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "vcreg_fx": __version__, STORE: str(FORMAT)}
    for name in ("torch", "torchvision", "timm", "transformers", "sklearn", "numpy"):
        if module := sys.modules.get(name):
            found[name] = str(getattr(module, "__version__", "unknown"))
    return found
