"""``vcreg-fx draw``: a picture of a model with the sites that a rule selects."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..exporting import draw as draw_plan
from ._errors import clear_errors
from ._options import (
    InputSize,
    LayoutText,
    ModelName,
    RuleText,
    Settings,
    parse_settings,
    parse_size,
    plan_named,
)


class Picture(str, Enum):
    """The formats of pictures."""

    SVG = "svg"
    PNG = "png"
    PDF = "pdf"
    DOT = "dot"


def draw(
    model: ModelName,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the picture goes.")
    ],
    rule: RuleText = "blocks",
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
    format: Annotated[  # noqa: A002 (the name of the option)
        Picture | None, typer.Option(help="By default what the ending of FILE says.")
    ] = None,
) -> None:
    """Draw a model: stages, blocks and sites, with shapes and layouts. Nothing is downloaded."""
    with clear_errors():
        options = parse_settings(option)
        planned = plan_named(model, rule, layout, parse_size(input_size), options)
        draw_plan(planned, output, format=None if format is None else format.value)
        count = len(planned.sites)
        typer.echo(f"{output}: {count} site{'s' * (count != 1)} for the rule {planned.rule}")
