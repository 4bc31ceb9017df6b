"""The trials of an ablation: every rule × every value of every axis × every seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from placement_rules import Rule, Series, UserError, parse, record

from .._shared.files import printable
from ..gradient import VCRegConfig, choose


class AblationError(UserError, RuntimeError):
    """An ablation cannot be run as it was asked for; trials that are finished stay in the store."""


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
        text = to_json(parts).encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(text).hexdigest()[:12]
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
        return in_one_line(self.label, {**self.config, **self.params}, self.seed)


def in_one_line(label: str, settings: Mapping[str, Any], seed: int | None = None) -> str:
    """Return what tells a trial from others, for people."""
    parts = [label, *(f"{name}={value}" for name, value in settings.items())]
    return printable(", ".join(parts if seed is None else [*parts, f"seed {seed}"]))


def to_json(value: Any) -> str:
    """Return JSON that is the same for the same value.

    **Raises:** `AblationError` for what JSON cannot hold.
    """
    try:
        _check_keys(value)
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise AblationError(
            f"{error}. The values of axes are stored as JSON: use numbers, strings, lists or "
            "dictionaries, and look up objects by name in build and train."
        ) from error


def _check_keys(value: Any) -> None:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise AblationError(
                    f'{value!r} has the key {key!r}, of which JSON would make "{key}", which is '
                    "another one. Use strings."
                )
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        _check_keys(item)


RuleLike = str | Rule | Series
INSERT = (*(item.name for item in fields(VCRegConfig)), "layout", "regularizer")
ARGUMENTS = (
    "build", "train", "evaluate", "rules", "seeds", "axes", "baseline", "store", "executor",
    "options",
)  # fmt: skip
COLUMNS = ("label", "rule", "seed", "status", "sites", "seconds", "id")  # of the table of records


def make_trials(
    rules: RuleLike | Iterable[RuleLike],
    seeds: Iterable[int],
    baseline: bool,
    axes: Mapping[str, Any],
    example: Callable[[], tuple[nn.Module, Any, Any]],
) -> list[Trial]:
    """Return the trials in a fixed order, seed by seed, each once.

    **Arguments:**

    - `rules`: strings, rule objects, or generators such as ``each("blocks")``.
    - `axes`: name → values. Arguments of ``insert`` do not concern the baseline, which is run once
      for each combination of the others.
    - `example`: returns a model with example arguments, for generators to look at.

    **Raises:** `AblationError` for axes without values, with a name that the engine uses, or with
    the letters of an argument of ``insert`` in another order; for seeds that are no whole numbers;
    `RuleSyntaxError` for rules that cannot be read.
    """
    seeds = list(seeds)
    if not seeds or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in seeds):
        raise AblationError(f"seeds={seeds!r} must be whole numbers ≥ 0, one at least.")
    if not isinstance(axes, Mapping):
        raise AblationError(f"axes={axes!r} must be a dictionary of names with lists of values.")
    rules = [rules] if isinstance(rules, (str, Rule, Series)) else rules
    named = [pair for rule in rules for pair in _expand(rule, example)]
    if not named and not baseline:
        raise AblationError("There is nothing to run: no rule, and baseline=False.")
    values = {name: _values(name, value) for name, value in axes.items()}
    configs = _product({name: v for name, v in values.items() if name in INSERT})
    params = _product({name: v for name, v in values.items() if name not in INSERT})
    _check_configs(configs)
    trials: dict[str, Trial] = {}
    for seed, own in itertools.product(seeds, params):
        found = [Trial(BASELINE, None, seed, {}, own)] if baseline else []
        found += [Trial(label, rule, seed, c, own) for label, rule in named for c in configs]
        for trial in found:
            trials.setdefault(trial.id, trial)
    return list(trials.values())


def _expand(
    rule: RuleLike, example: Callable[[], tuple[nn.Module, Any, Any]]
) -> list[tuple[str, Rule]]:
    if isinstance(rule, Series):
        model, args, kwargs = example()
        return [(str(found), found) for found in rule.rules(record(model, args, kwargs))]
    if isinstance(rule, str) and rule == BASELINE:
        raise AblationError('"baseline" is no rule; the baseline is run with baseline=True.')
    return [(str(rule), parse(rule))]


def _values(name: str, values: Any) -> list[Any]:
    """Return the values of an axis; one value alone is an axis of one value."""
    if name in (*ARGUMENTS, *COLUMNS):
        raise AblationError(
            f"An axis cannot be named {name!r}: that is no axis, the engine uses the name."
        )
    for known in INSERT:
        if name != known and sorted(name.lower()) == sorted(known):
            raise AblationError(f"There is no axis {name!r}; the argument of insert is {known!r}.")
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        values = [values]
    found: list[Any] = list(values)
    if not found:
        raise AblationError(f"The axis {name} has no values.")
    to_json(found)
    return found


def _check_configs(configs: Sequence[Mapping[str, Any]]) -> None:
    for config in configs:
        try:
            own = {k: v for k, v in config.items() if k not in {"layout", "regularizer"}}
            choose(config.get("regularizer", "vcreg"), VCRegConfig(**own))
        except (TypeError, ValueError) as error:
            raise AblationError(f"VCReg cannot be inserted with {dict(config)}: {error}") from error


def _product(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
