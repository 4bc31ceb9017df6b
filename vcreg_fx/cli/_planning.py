"""Plan on a model that the command line names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import typer
from torch import Tensor, nn

from placement_rules import RecordingError

from ..surgery import Plan, plan
from ._model import load_model


def plan_named(
    name: str,
    rule: str,
    layout: str | None,
    size: tuple[int, ...] | None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan on the meta device, where no weights are made, if the model can be recorded there."""
    model = load_model(name, meta=True, options=options)
    try:
        return plan(model, rule, example_inputs=example_of(model, size), layout=layout)
    except RecordingError:
        if not any(parameter.is_meta for parameter in model.parameters()):
            raise
    model = load_model(name, options=options)
    return plan(model, rule, example_inputs=example_of(model, size), layout=layout)


def example_of(model: nn.Module, size: tuple[int, ...] | None) -> tuple[Tensor, ...] | None:
    """Return a batch of two examples of a size for the model; None if no size is given."""
    if size is None:
        return None
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return (torch.zeros((2, *size), dtype=parameter.dtype, device=parameter.device),)


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """Read the size of one example, ``3,224,224``."""
    if text is None:
        return None
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a size. Write whole numbers with commas between: 3,32,32.",
            param_hint="--input-size",
        )
    return size
