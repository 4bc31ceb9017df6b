"""The record of a finished trial: plain data, as it lies in the store."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from typing import Any, Literal

from ._trial import Trial


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

    @property
    def reason(self) -> str:
        """The last line of the traceback: what went wrong."""
        lines = [line for line in (self.traceback or "").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


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


def is_number(value: float) -> bool:
    """Whether a metric has a finite value."""
    return math.isfinite(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "vcreg_fx": _installed("vcreg-fx")}
    for name in ("torch", "torchvision", "timm", "transformers", "sklearn", "numpy"):
        if module := sys.modules.get(name):
            found[name] = str(getattr(module, "__version__", "unknown"))
    return found


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
