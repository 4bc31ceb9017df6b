"""``vcreg-fx sites`` and ``draw``: where a rule would insert VCReg, as a list or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._shared.progress import Progress
from ._console import print_sites, say, say_written
from ._options import InputSize, LayoutText, ModelName, RuleText, Settings, to_file

if TYPE_CHECKING:
    from placement_rules import Rule

    from ..surgery import Plan

_NAMES = ("head", "blocks", "residual", "downsample", "stages", "VCReg4")


def sites(
    model: ModelName,
    rule: RuleText = "blocks",
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """List the sites that a rule selects in a model. Nothing is downloaded, trained or changed."""
    from ._model import plan_named

    planned = plan_named(model, rule, layout, input_size, option)
    if json:
        typer.echo(planned.to_json())
        return
    print_sites(planned)
    if same := same_rules(planned):
        say(
            f"The same sites are selected here by {', '.join(same[:-1])}"
            f"{' and ' if same[1:] else ''}{same[-1]}."
        )


def same_rules(planned: Plan) -> list[str]:
    """Return the other rules of the papers, and those without arguments, that select the same."""
    from placement_rules import parse

    def tensors(rule: Rule) -> set[Any]:
        return {spot.flat for spot in rule.select(planned.recording)}

    ours = tensors(planned.rule)
    rules = {str(parse(name)): parse(name) for name in _NAMES}
    rules.pop(str(planned.rule), None)
    return [name for name, rule in rules.items() if ours and tensors(rule) == ours]


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
