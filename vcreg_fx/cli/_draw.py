"""``vcreg-fx draw``: a picture of a model with the sites that a rule selects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._shared.progress import Progress
from ._console import say, say_written
from ._options import InputSize, LayoutText, ModelName, RuleText, Settings, to_file


def draw(
    model: ModelName,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", callback=to_file, help="Where the picture goes."
        ),
    ],
    rule: RuleText = "blocks",
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
    format: Annotated[  # noqa: A002 (the name of the option)
        str | None,
        typer.Option(metavar="svg|png|pdf|dot", help="By default what the ending of FILE says."),
    ] = None,
) -> None:
    """Draw a model: stages, blocks and sites, with shapes and layouts. Nothing is downloaded."""
    from ..exporting import draw as draw_plan
    from ._model import plan_named

    planned = plan_named(model, rule, layout, input_size, option)
    name = None if ":" in model else model.rpartition("/")[2]
    with Progress("drawing", passing=True):
        draw_plan(planned, output, format=format, title=name)
    count = len(planned.sites)
    say(f"{count} site{'s' * (count != 1)} for the rule {planned.rule}")
    say_written(output)
