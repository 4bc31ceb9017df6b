"""``vcreg-fx measure``: how strong VCReg is at each site of a model, before training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .._shared.progress import Progress
from ._console import print_table
from ._options import (
    Alpha,
    Beta,
    Checkpoint,
    InputSize,
    LayoutText,
    ModelName,
    RuleText,
    Settings,
    finite,
    given,
    seed_option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..site import Calibration

_INSTEAD = "vcreg_fx.measure(model, inputs, loss)"


def measure(  # noqa: PLR0913, PLR0917 - an argument an option
    model: ModelName,
    rule: RuleText = "blocks",
    alpha: Alpha = None,
    beta: Beta = None,
    batch: Annotated[int, typer.Option(min=2, help="Examples.")] = 16,
    checkpoint: Checkpoint = None,
    layout: LayoutText = None,
    input_size: InputSize = None,
    option: Settings = None,
    calibrate: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            min=1e-9,
            callback=finite,
            help="Find α and β that make VCReg's gradient RATIO times the task's at each site.",
        ),
    ] = None,
    seed: Annotated[int, seed_option("Of weights, images and labels.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compare VCReg's gradient with the task's at each site, on one batch of noise.

    The task is cross-entropy against random labels. For your own data, call vcreg_fx.measure.
    """
    import torch

    from ..site import calibrate as calibrate_sites
    from ..site import measure as measure_sites
    from ..surgery import insert
    from ._model import example_of, load_checkpoint, load_model, noise_for

    with Progress("measuring", passing=True):
        torch.manual_seed(seed)
        network = load_model(model, options=dict(option or ()))
        if checkpoint is not None:
            load_checkpoint(network, checkpoint)
        inputs = (noise_for(network, batch, _INSTEAD, example_of(network, input_size)),)
        insert(network, rule, example_inputs=inputs, layout=layout, **given(alpha=alpha, beta=beta))
        if calibrate is not None:
            made = calibrate_sites(network, inputs, _task, calibrate)
        else:
            found = measure_sites(network, inputs, _task)
    if calibrate is None:
        if as_json:
            typer.echo(json.dumps(found.to_dicts(), indent=2))
        else:
            _print(found.cells())
    elif as_json:
        typer.echo(_calibrated_json(made))
    else:
        _print(made.cells())
        typer.echo(_to_insert(made, rule))


def _print(cells: list[tuple[str, ...]]) -> None:
    head, *rows = cells
    head = tuple(name.replace("/", " / ") for name in head)  # where lines may break
    print_table(head, rows, right=head[1:])


def _to_insert(made: Calibration, rule: str) -> str:
    lines = [
        f'    {name!r}: {{"alpha": {values["alpha"]:.6g}, "beta": {values["beta"]:.6g}}},'
        for name, values in made.coefficients.items()
    ]
    return "\n".join([
        "What to pass to insert:", "",
        f"vcreg_fx.insert(model, {rule!r}, coefficients={{", *lines, "})",
    ])  # fmt: skip


def _calibrated_json(made: Calibration) -> str:
    rows = {"before": made.before.to_dicts(), "after": made.after.to_dicts()}
    data = {"ratio": made.ratio, "coefficients": made.coefficients, **rows}
    return json.dumps(data, indent=2, ensure_ascii=False)


def _task(output: object) -> Tensor:
    """Cross-entropy of the largest tensor in the output, against random labels."""
    import torch

    from placement_rules import RecordingError, leaves

    tensors = [tensor for _, tensor in leaves(output) if tensor.is_floating_point()]
    if not tensors:
        raise RecordingError("The model's output holds no tensor, so there is nothing to train.")
    logits = max(tensors, key=torch.Tensor.numel)
    logits = logits.flatten(1) if logits.ndim > 2 else logits
    labels = torch.randint(logits.shape[1], (logits.shape[0],))
    return torch.nn.functional.cross_entropy(logits.float(), labels)
