"""What a checkpoint keeps of VCReg: what was inserted, the coefficients, the sites' steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..site import CoefficientSchedule, named_sites
from ..surgery import get_configs, insert

FILE = "vcreg_fx.json"


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
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(state, indent=2, ensure_ascii=False)
    (folder / file).write_text(text + "\n", encoding="utf-8")


def read_state(folder: Path, file: str = FILE) -> dict[str, Any]:
    """Read it again.

    **Raises:** `FileNotFoundError` that says what writes it.
    """
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {file}, which vcreg_fx.integrations writes into the checkpoints of a "
            "run that it follows. Without it, insert again by the arguments of that run: "
            "vcreg_fx.insert(model, …)."
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
