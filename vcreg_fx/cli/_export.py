"""``vcreg-fx export``: a model with VCReg as a file or folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..exporting import export as export_model
from ..gradient import VCRegConfig
from ..surgery import insert, sites
from ._errors import clear_errors
from ._model import load_checkpoint, load_model
from ._options import (
    Alpha,
    Beta,
    InputSize,
    LayoutText,
    ModelName,
    RuleText,
    Settings,
    example_of,
    parse_settings,
    parse_size,
)


class Format(str, Enum):
    """The formats of `vcreg_fx.export`."""

    FX = "fx"
    PT2 = "pt2"
    ONNX = "onnx"


def export(  # noqa: PLR0913, PLR0917 - an argument an option
    model: ModelName,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="The folder or file to write.")
    ],
    rule: RuleText = "blocks",
    format: Annotated[  # noqa: A002 (the name of the option)
        Format | None,
        typer.Option(help="By default what the ending of PATH says; a folder for fx."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights: a state dict. Without, they are random."),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="With pt2: the training step, with VCReg's operator.")
    ] = False,
    alpha: Alpha = VCRegConfig.alpha,
    beta: Beta = VCRegConfig.beta,
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
) -> None:
    """Insert VCReg into a model and export it. What is written is compared with the model."""
    with clear_errors():
        size = parse_size(input_size)
        built = load_model(model, options=parse_settings(option))
        example = example_of(built, size)
        insert(built, rule, example_inputs=example, layout=layout, alpha=alpha, beta=beta)
        if checkpoint is None:
            typer.echo("The weights are random; --checkpoint FILE loads trained ones.", err=True)
        else:
            load_checkpoint(built, checkpoint)
        form = None if format is None else format.value
        export_model(built, output, form, training=training, example_inputs=example)
        count = len(sites(built))
        typer.echo(f"{output}: {type(built).__name__}, {count} site{'s' * (count != 1)}, checked")
