"""``vcreg-fx sites``: where a rule would insert VCReg."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import nn

from placement_rules import RecordingError

from ..surgery import Plan, plan
from ._errors import clear_errors
from ._model import FORMS, load_model


def sites(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.")],
    rule: Annotated[
        str, typer.Option(metavar="EXPR", help='Where, such as "blocks | downsample".')
    ] = "blocks",
    layout: Annotated[
        str | None, typer.Option(help="The layout of every site, such as NHWC; else inferred.")
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="The size of one example; else worked out."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List the sites that a rule selects in a model. Nothing is downloaded, trained or changed."""
    with clear_errors():
        size = _parse_size(input_size)
        planned = _plan(model, rule, layout, size)
        if json:
            typer.echo(planned.to_json())
            return
        from rich.console import Console

        from ._console import print_sites

        print_sites(Console(), planned)


def _plan(name: str, rule: str, layout: str | None, size: tuple[int, ...] | None) -> Plan:
    """Plan on the meta device, where no weights are made, if the model can be recorded there."""
    model = load_model(name, meta=True)
    try:
        return _plan_on(model, rule, layout, size)
    except RecordingError:
        if not any(parameter.is_meta for parameter in model.parameters()):
            raise
    return _plan_on(load_model(name), rule, layout, size)


def _plan_on(model: nn.Module, rule: str, layout: str | None, size: tuple[int, ...] | None) -> Plan:
    inputs = None
    if size is not None:
        parameter = next(iter(model.parameters()), torch.zeros(()))
        inputs = (torch.zeros((2, *size), dtype=parameter.dtype, device=parameter.device),)
    return plan(model, rule, example_inputs=inputs, layout=layout)


def _parse_size(text: str | None) -> tuple[int, ...] | None:
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
