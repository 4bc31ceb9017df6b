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
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="For building the model, such as num_classes=10; may be repeated.",
    ),
]
Alpha = Annotated[float, typer.Option(min=0, help="α, the weight of the variance loss.")]
Beta = Annotated[float, typer.Option(min=0, help="β, the weight of the covariance loss.")]
InputSize = Annotated[
    str | None, typer.Option(metavar="C,H,W", help="The size of one example; else worked out.")
]
