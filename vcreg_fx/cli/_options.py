"""Arguments and options that several commands share, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from placement_rules import RecordingError

from ..surgery import Plan, plan
from ._model import FORMS, load_model

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.")]
RuleText = Annotated[
    str, typer.Option(metavar="EXPR", help='Where, such as "blocks | downsample".')
]
LayoutText = Annotated[
    str | None, typer.Option(help="The layout of every site, such as NHWC; else inferred.")
]
Alpha = Annotated[float, typer.Option(min=0, help="α, the weight of the variance loss.")]
Beta = Annotated[float, typer.Option(min=0, help="β, the weight of the covariance loss.")]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights: a state dict. Else they are random.")
]


def parse_value(text: str) -> Any:
    """Return a number, true, false or null, as JSON or Python write them; else the string."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


def parse_setting(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is no setting. Write NAME=VALUE: num_classes=10.")
    return name, parse_value(value)


def _parse_size(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a size. Write whole numbers with commas between: 3,32,32."
        )
    return size


Settings = Annotated[
    list[Any] | None,  # pairs of name and value
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        parser=parse_setting,
        help="For building the model, such as num_classes=10; may be repeated.",
    ),
]
InputSize = Annotated[
    Any,  # whole numbers, or None
    typer.Option(
        metavar="C,H,W", parser=_parse_size, help="The size of one example; else worked out."
    ),
]


def plan_named(
    name: str, rule: str, layout: str | None, size: tuple[int, ...] | None, settings: Settings
) -> Plan:
    """Plan on the meta device, where no weights are made, if the model can be recorded there."""
    options = dict(settings or ())
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
