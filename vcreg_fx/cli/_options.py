"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ._model import FORMS

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.")]
RuleText = Annotated[
    str, typer.Option(metavar="EXPR", help='Where, such as "blocks | downsample".')
]
LayoutText = Annotated[
    str | None, typer.Option(help="The layout of every site, such as NHWC; else inferred.")
]
InputSize = Annotated[
    str | None, typer.Option(metavar="C,H,W", help="The size of one example; else worked out.")
]
