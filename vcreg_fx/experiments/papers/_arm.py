"""The ways to regularize that an experiment compares."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to regularize.

    **Attributes:**

    - `name`: as the table shows it.
    - `rule`: where VCReg is inserted; None for a model without.
    - `fixed`: settings that it always has.
    - `grid`: settings that are searched: name → values.
    """

    name: str
    rule: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every choice of settings."""
        return [
            {**self.fixed, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]


def vcreg_arms(
    grid: Mapping[str, Sequence[Any]], rule: str = "blocks", conventions: bool = True
) -> list[Arm]:
    """Return the baseline and VCReg, with the exact gradient and as the paper prints it.

    As printed is Algorithm 1 behind the mean removal layer of Appendix A, which it needs.

    What is in the grid but does not concern VCReg, such as ``learning_rate``, is searched for the
    baseline, too.

    **Arguments:**

    - `conventions`: with ``convention="algorithm1"`` as an arm of its own.
    """
    shared = {name: values for name, values in grid.items() if name not in {"alpha", "beta"}}
    arms = [Arm("no VCReg", grid=shared), Arm("VCReg", rule, {"convention": "exact"}, grid)]
    if conventions:
        printed = {"convention": "algorithm1", "demean": "activations"}
        arms.append(Arm("VCReg (Algorithm 1)", rule, printed, grid))
    return arms
