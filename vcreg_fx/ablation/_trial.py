"""One trial: a placement, coefficients, the user's own settings, a seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from placement_rules import Rule

from ._errors import AblationError

BASELINE = "baseline"


@dataclass(frozen=True)
class Trial:
    """What distinguishes one training run of an ablation from the others.

    ``trial["lr"]`` looks a name up among the user's settings, then in the configuration.

    **Attributes:**

    - `label`: the rule as the table shows it; ``"baseline"`` for a model without VCReg.
    - `rule`: the rule, None for the baseline.
    - `seed`: of weights and training.
    - `config`: the arguments of ``vcreg_fx.insert`` that the ablation sets.
    - `params`: the user's own settings.
    """

    label: str
    rule: Rule | None = field(compare=False)
    seed: int
    config: Mapping[str, Any]
    params: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The name of the trial's folder: the same for the same trial in every process."""
        expression = None if self.rule is None else str(self.rule)
        parts = [self.label, expression, self.seed, dict(self.config), dict(self.params)]
        digest = hashlib.sha256(to_json(parts).encode()).hexdigest()[:12]
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")[:40] or "rule"
        return f"{slug}-seed{self.seed}-{digest}"

    def __getitem__(self, name: str) -> Any:
        """Return a setting by its name.

        **Raises:** `KeyError` that lists the names.
        """
        known = {**self.config, **self.params}
        if name not in known:
            raise KeyError(f"{name!r}; this trial has {', '.join(known) or 'no settings'}")
        return known[name]

    def __str__(self) -> str:
        """Return label, settings and seed in one line."""
        settings = [f"{name}={value}" for name, value in {**self.config, **self.params}.items()]
        return ", ".join([self.label, *settings, f"seed {self.seed}"])


def to_json(value: Any) -> str:
    """Return JSON that is the same for the same value.

    **Raises:** `AblationError` for what JSON cannot hold.
    """
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise AblationError(
            f"{error}. The values of axes are stored as JSON: use numbers, strings, lists or "
            "dictionaries, and look up objects by name in build and train."
        ) from error
