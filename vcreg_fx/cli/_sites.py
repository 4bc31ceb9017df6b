"""``vcreg-fx sites``: where a rule would insert VCReg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import print_sites, say
from ._options import InputSize, LayoutText, ModelName, RuleText, Settings

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
