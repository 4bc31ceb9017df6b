"""VCReg of a model in a trainer's hands: inserted, scaled as its loss is, scheduled, kept."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from placement_rules import Rule, parse

from .._errors import InsertionError
from .._shared.files import write_text
from ..gradient import choose
from ..site import (
    CoefficientSchedule,
    LiveSite,
    LossScale,
    check_schedule,
    insertions,
    named_sites,
)
from ..surgery import get_configs, insert, make_config, set_loss_scale, sites

FILE = "vcreg_fx.json"  # of a checkpoint
Schedule = CoefficientSchedule | Mapping[str, Any]


class Follower:
    """What a trainer's callback does for one model.

    **Arguments:**

    - `rule`: as for `vcreg_fx.insert`; None to follow what was inserted.
    - `schedule`: a `CoefficientSchedule`, or its arguments but the model.
    - `overrides`: further arguments of `vcreg_fx.insert`.

    **Raises:** `TypeError` for arguments that `vcreg_fx.insert` has not, and without a rule for
    any.
    """

    def __init__(
        self, rule: str | Rule | None, schedule: Schedule | None, overrides: dict[str, Any]
    ) -> None:
        self.rule = None if rule is None else parse(rule)
        self.overrides = overrides
        self.model: nn.Module | None = None
        self.schedule = schedule if isinstance(schedule, CoefficientSchedule) else None
        self._lengths = dict(schedule) if isinstance(schedule, Mapping) else None
        self._kept: dict[str, Any] | None = None  # the state of the schedule in a checkpoint
        self._before: dict[LiveSite, LossScale | None] = {}
        self._scale: tuple[Any, int] | None = None
        if rule is None and overrides:
            raise TypeError(
                f"Without a rule nothing is inserted: {', '.join(overrides)} has no use."
            )
        others = inspect.signature(insert).parameters
        fields = {name: value for name, value in overrides.items() if name not in others}
        self._config = make_config(overrides.get("config"), fields)
        if self._lengths is not None:
            lengths = inspect.signature(CoefficientSchedule).bind(None, **self._lengths).arguments
            check_schedule(*(lengths.get(name, 0) for name in ("warmup", "decay", "final")))

    # Inserting --------------------------------------------------------------------------------

    def take(self, model: nn.Module) -> bool:
        """Follow a model, and insert by the rule if that was not done.

        **Returns:** whether it was done now.
        """
        self.model = model
        config = choose(self.overrides.get("regularizer", "vcreg"), self._config)[1]
        asked = (str(self.rule), config.to_dict())
        if self.rule is None or asked in [(i.rule, i.config) for i in insertions(model)]:
            return False
        insert(model, self.rule, **self.overrides)
        return True

    def require(self, how: str) -> nn.Module:
        """Return the model.

        **Raises:** `InsertionError` if nothing was inserted into it.
        """
        if self.model is None or not sites(self.model):
            raise InsertionError(
                "VCRegCallback has no rule, and nothing was inserted into the model. Insert before "
                f'training, vcreg_fx.insert(model, "blocks"), or give a rule: {how}.'
            )
        return self.model

    # The scale --------------------------------------------------------------------------------

    def scale(self, scaler: Any | None, steps: int) -> None:
        """Scale VCReg as the trainer does its loss: by a scaler, and divided by the steps."""
        assert self.model is not None
        if (scaler, steps) == self._scale:
            return
        factor = 1.0 if scaler is None else scaler
        if not self._before:
            self._before = {site: site.loss_scale for site in sites(self.model)}
            self._tell_of_others(float(LossScale(factor, steps).read()))
        set_loss_scale(self.model, factor, steps)
        self._scale = (scaler, steps)

    def leave(self) -> None:
        """Give the sites back the scale that they had: another loop may follow."""
        for site, scale in self._before.items():
            site.loss_scale = scale
        self._before, self._scale = {}, None

    def _tell_of_others(self, mine: float) -> None:
        others = {float(scale.read()) for scale in self._before.values() if scale is not None}
        if others - {mine}:
            warnings.warn(
                f"set_loss_scale was called with {min(others):g}, and the trainer scales its loss "
                f"by {mine:g}: the trainer's scale is used. If the loss is scaled by more than the "
                "trainer's part, leave VCRegCallback out and call set_loss_scale alone.",
                stacklevel=2,
            )

    # The schedule -----------------------------------------------------------------------------

    def schedule_to(self, step: int, total: Callable[[], int]) -> None:
        """Set the coefficients of a step; `total` says how many there are, where it is needed."""
        if self._lengths is not None and self.schedule is None:
            lengths = dict(self._lengths)
            if lengths.get("decay") and lengths.get("total") is None:
                lengths["total"] = total()
            self.schedule = CoefficientSchedule(self.require(""), **lengths)
        if self.schedule is not None:
            if self._kept is not None:
                self.schedule.load_state_dict(self._kept)
                self._kept = None
            if step != self.schedule.last_step:
                self.schedule.step(to=step)

    # Checkpoints ------------------------------------------------------------------------------

    def state(self, *, buffers: bool = False) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain data; see `state_of`."""
        assert self.model is not None
        return state_of(self.model, self.schedule, buffers=buffers)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; where this run inserts something else, say so and leave it."""
        assert self.model is not None
        difference = restore_state(self.model, state)
        if difference is not None:
            warnings.warn(
                f"{difference} This run's is used, from its beginning; the checkpoint's "
                "coefficients and steps are not.",
                stacklevel=2,
            )
            return
        self._kept = state.get("schedule")
        if self._kept is not None and self._lengths is None and self.schedule is None:
            warnings.warn(
                "The checkpoint was trained with a schedule of α and β, and this run has none: "
                "they stay what they were there. Give VCRegCallback schedule= to go on.",
                stacklevel=2,
            )


def refuse_engine(model: nn.Module, engine: str) -> None:
    """Refuse an engine that scales the loss where nobody can follow it.

    **Raises:** `InsertionError`, if a site needs to know the scale.
    """
    if any(site.needs_scale for site in sites(model)):
        raise InsertionError(
            f"{engine} scales the loss inside of its engine, which VCReg cannot follow. Insert "
            'with ratio=, which needs no scale, or with mode="loss" and add '
            "vcreg_fx.penalty(model) to the loss of each step; or leave the integration out and "
            "call vcreg_fx.set_loss_scale(model, …) with what the engine does."
        )


def missing(library: str, extra: str) -> ImportError:
    return ImportError(
        f"vcreg_fx.integrations.{extra} needs {library}, which is not installed: "
        f'pip install "vcreg-fx[{extra}]".'
    )


# What a checkpoint keeps: what was inserted, the coefficients, the sites' steps ------------------


def state_of(
    model: nn.Module, schedule: CoefficientSchedule | None = None, *, buffers: bool = False
) -> dict[str, Any]:
    """Return what `restore_state` needs, as plain data.

    With `buffers`, also the running means of ``demean="activations"``, where the weights beside it
    will be loaded into a model that does not have them.
    """
    state: dict[str, Any] = {
        "configs": get_configs(model),
        "steps": {name: site.step for name, site in named_sites(model)},
    }
    if schedule is not None:
        state["schedule"] = schedule.state_dict()
    if buffers:
        state["buffers"] = {
            name: value.tolist() for name, value in model.named_buffers() if _is_mean(name)
        }
    plain: dict[str, Any] = _plain(state)
    return plain


def restore_state(
    model: nn.Module,
    state: dict[str, Any],
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> str | None:
    """Insert what a checkpoint names if the model has nothing, and set coefficients and steps.

    **Returns:** None; or, where the model has something else, what differs, and nothing is done.
    """
    if not named_sites(model):
        examples = {"example_inputs": example_inputs, "example_kwargs": example_kwargs}
        for config in state["configs"]:
            insert(model, **{**config, **examples})
    elif difference := _difference(state["configs"], _plain(get_configs(model))):
        return f"The checkpoint's VCReg is not this model's: {difference}."
    by_name = dict(named_sites(model))
    for name, site in by_name.items():
        site.step = state["steps"].get(name, 0)
    for config in state["configs"]:
        for name, values in config["coefficients"].items():
            if name in by_name:
                by_name[name].alpha, by_name[name].beta = values["alpha"], values["beta"]
    for name, value in state.get("buffers", {}).items():
        buffer = model.get_buffer(name)
        buffer.copy_(torch.tensor(value, dtype=buffer.dtype))
    return None


def write_state(folder: Path, state: dict[str, Any], file: str = FILE) -> None:
    text = json.dumps(state, indent=2, ensure_ascii=False)
    write_text(folder / file, text + "\n")


def read_state(folder: Path, file: str = FILE) -> dict[str, Any]:
    """Read it again.

    **Raises:** `FileNotFoundError` that says what writes it; `InsertionError` if it is damaged.
    """
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {file}, which vcreg_fx.integrations writes into the checkpoints of a "
            "run that it follows. Without it, insert again by the arguments of that run: "
            "vcreg_fx.insert(model, …)."
        )
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InsertionError(
            f"{path} is damaged: {error}. Insert again by the arguments of that run: "
            "vcreg_fx.insert(model, …)."
        ) from error
    return state


def _is_mean(buffer: str) -> bool:
    name = buffer.rpartition(".")[2]
    return name.startswith("vcreg_") and name.endswith("_running_mean")


def _plain(data: dict[str, Any] | list[Any]) -> Any:
    """Return data as JSON has it; a function without a name to import by is told by its name."""
    return json.loads(json.dumps(data, default=lambda v: getattr(v, "__qualname__", repr(v))))


def _difference(theirs: list[dict[str, Any]], mine: list[dict[str, Any]]) -> str:
    if len(theirs) != len(mine):
        return f"it was inserted {len(theirs)} times there, and {len(mine)} times here"
    for one, two in zip(theirs, mine, strict=True):
        for key in one | two:
            there, here = one.get(key), two.get(key)
            if key == "coefficients":  # they change in training; the sites do not
                there, here = sorted(there or ()), sorted(here or ())
            if there != here:
                what = "sites" if key == "coefficients" else key
                return f"{what} is {there!r} there, and {here!r} here"
    return ""
