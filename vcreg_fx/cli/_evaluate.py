"""``vcreg-fx evaluate``: all measurements of a trained model's features."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ._console import print_table
from ._errors import ModelError, clear_errors
from ._options import Checkpoint, ModelName, Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def evaluate(  # noqa: PLR0913, PLR0917 - an argument an option
    model: ModelName,
    checkpoint: Checkpoint = None,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="A folder of one folder a class, or digits.")
    ] = "digits",
    rule: Annotated[str, typer.Option(metavar="EXPR", help="Where features are read.")] = "head",
    option: Settings = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="The side of images; else the model's, or 224.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    probe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="May be repeated; else all probes.")
    ] = None,
    information: Annotated[
        bool, typer.Option(help="Estimate mutual information, which takes longest.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights, splits and probes.")] = 0,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the numbers go.")
    ] = Path("evaluation"),
) -> None:
    """Measure a model's features: probes, clustering, information, correlation, spectrum.

    Nothing is downloaded. Probes are trained on the training images, every number is measured on
    the others. Writes evaluation.json and spectra.png.
    """
    with clear_errors():
        import torch

        from ..evaluation import PROBES, covariance_spectrum, extract_features, measure_features
        from ..experiments import draw_spectra
        from ._images import load_data
        from ._model import load_checkpoint_if_any, load_model

        if unknown := sorted(set(probe or ()) - set(PROBES)):
            raise ModelError(f"There is no probe {unknown[0]}; there are {', '.join(PROBES)}.")
        options = dict(option or ())
        where = _device(device)
        if data == "digits" and model.startswith("timm/"):
            options.setdefault("in_chans", 1)
        torch.manual_seed(seed)
        built = load_model(model, options=options)
        load_checkpoint_if_any(built, checkpoint)
        train, test = load_data(data, built, size, seed)
        output.mkdir(parents=True, exist_ok=True)
        shown = sys.stdout.isatty()
        known = extract_features(built, train, rule, device=where, progress=shown)
        new = extract_features(built, test, rule, device=where, progress=shown)
        if known.labels is None or new.labels is None:
            raise ModelError("The data has no labels.")
        inputs = _small(test) if information else None
        found: dict[str, dict[str, float]] = {}
        spectra: dict[str, Tensor] = {}
        for name, features in new.tensors.items():
            typer.echo(f"measuring {name}, {features.shape[1]} features", err=True)
            found[name] = measure_features(
                (known.tensors[name], known.labels),
                (features, new.labels),
                probes=probe or PROBES,
                inputs=inputs,
                seed=seed,
            )
            spectra[name] = covariance_spectrum(features)
        _print(found)
        result = {
            "model": model,
            "checkpoint": None if checkpoint is None else checkpoint.name,
            "data": data if data == "digits" else Path(data).name,
            "images": {"train": len(known.labels), "test": len(new.labels)},
            "seed": seed,
            "torch": torch.__version__,
            "sites": found,
        }
        numbers, picture = output / "evaluation.json", output / "spectra.png"
        numbers.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
        draw_spectra(spectra, picture, f"Covariance spectrum of {model}, test images")
        typer.echo(f"Written: {numbers}\nWritten: {picture}")


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _small(batches: Any) -> Tensor:
    """Return the images at 32×32 or less: enough for the estimate, and few enough numbers."""
    import torch

    parts = [images for images, _ in batches]
    side = min(32, *parts[0].shape[2:])
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(part, side) for part in parts])


def _print(found: dict[str, dict[str, float]]) -> None:
    rows = []
    for metric in next(iter(found.values())):
        shares = metric.endswith(("_accuracy", "_precision")) or metric.startswith("share")
        form = ".2%" if shares else ".4g"
        unit = " (nats)" if metric == "mutual_information" else ""
        values = [format(numbers[metric], form) for numbers in found.values()]
        rows.append((metric.replace("_", " ") + unit, *values))
    print_table(Console(), ["on the test images", *found], rows, right=found)
