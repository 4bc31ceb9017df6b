"""``vcreg-fx export``: a model with VCReg as a file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._shared.progress import Progress
from ._console import say, say_written
from ._options import (
    Alpha,
    Beta,
    Checkpoint,
    InputSize,
    LayoutText,
    ModelName,
    RuleText,
    Settings,
    given,
)


def export(  # noqa: PLR0913, PLR0917 - an argument an option
    model: ModelName,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="The folder or file to write.")
    ],
    rule: RuleText = "blocks",
    format: Annotated[  # noqa: A002 (the name of the option)
        str | None,
        typer.Option(
            metavar="fx|pt2|onnx", help="By default what the ending of PATH says; a folder for fx."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    training: Annotated[
        bool, typer.Option("--training", help="With pt2: the training step, with VCReg's operator.")
    ] = False,
    alpha: Alpha = None,
    beta: Beta = None,
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace PATH even if no export wrote it.")
    ] = False,
) -> None:
    """Insert VCReg into a model and export it. What is written is compared with the model."""
    from ..exporting import export as export_model
    from ..surgery import insert, sites
    from ._model import example_of, load_checkpoint_if_any, load_model

    with Progress("building the model", passing=True) as bar:
        built = load_model(model, options=dict(option or ()))
        example = example_of(built, input_size)
        insert(built, rule, example_inputs=example, layout=layout, **given(alpha=alpha, beta=beta))
        load_checkpoint_if_any(built, checkpoint)
        bar.advance("exporting", steps=0)
        export_model(
            built,
            output,
            format,
            training=training,
            example_inputs=example,
            overwrite=overwrite,
        )
    count = len(sites(built))
    say(f"{type(built).__name__}: {count} site{'s' * (count != 1)}, checked")
    say_written(output)
