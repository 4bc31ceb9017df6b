"""``vcreg-fx sites``: where a rule would insert VCReg."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ._console import print_sites
from ._errors import clear_errors
from ._options import InputSize, LayoutText, ModelName, RuleText, Settings


def sites(
    model: ModelName,
    rule: RuleText = "blocks",
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List the sites that a rule selects in a model. Nothing is downloaded, trained or changed."""
    with clear_errors():
        from ._model import plan_named

        planned = plan_named(model, rule, layout, input_size, option)
        if json:
            typer.echo(planned.to_json())
        else:
            print_sites(Console(), planned)
