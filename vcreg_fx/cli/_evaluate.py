"""``vcreg-fx evaluate``: all measurements of a trained model's features."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._shared.progress import Progress
from .._shared.report import Report
from .._shared.statistics import wilson_interval
from .._shared.tables import markdown_table
from ._console import print_table, say, say_written
from ._errors import ModelError, OptionError
from ._options import MOST_SEED, Checkpoint, ModelName, Settings, to_folder

if TYPE_CHECKING:
    from torch import Tensor


_INTERVALS = "In parentheses: Wilson's 95 % interval, for the number of test images alone."


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
    semi_supervised: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            help="Fine-tune a copy on this share of the labels as well: 0.01 or 0.1.",
        ),
    ] = None,
    information: Annotated[
        bool, typer.Option(help="Estimate mutual information, which takes longest.")
    ] = True,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MOST_SEED, help="Of random weights, splits and probes."),
    ] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="DIR", callback=to_folder, help="Where the numbers go."
        ),
    ] = Path("evaluation"),
) -> None:
    """Measure a model's features: probes, clustering, information, correlation, spectrum.

    Nothing is downloaded. Probes are trained on the training images, every number is measured on
    the others. Writes evaluation.json, spectra.png and a report.
    """
    import torch

    from ..evaluation import (
        PROBES,
        covariance_spectrum,
        extract_features,
        measure_features,
    )
    from ._images import load_data
    from ._model import device_of, load_checkpoint_if_any, load_model

    _check(probe or (), semi_supervised or ())
    options = dict(option or ())
    where = device_of(device)
    if data == "digits" and (model.startswith("timm/") or not {"/", ":"} & {*model}):
        options.setdefault("in_chans", 1)
    torch.manual_seed(seed)
    built = load_model(model, options=options)
    load_checkpoint_if_any(built, checkpoint)
    train, test = load_data(data, built, size, seed)
    output.mkdir(parents=True, exist_ok=True)
    known = extract_features(built, train, rule, device=where, progress=None)
    new = extract_features(built, test, rule, device=where, progress=None)
    if known.labels is None or new.labels is None:
        raise ModelError("The data has no labels.")
    inputs = _small(test) if information else None
    found: dict[str, dict[str, float]] = {}
    spectra: dict[str, Tensor] = {}
    for name, features in new.tensors.items():
        say(f"Measuring {name}, {features.shape[1]} features.", err=True)
        with Progress(f"measuring {name}", passing=True):
            found[name] = measure_features(
                (known.tensors[name], known.labels),
                (features, new.labels),
                probes=probe or PROBES,
                inputs=inputs,
                seed=seed,
            )
        spectra[name] = covariance_spectrum(features)
    tuned = {
        f"{share:.0%} of the labels": _fine_tuned(built, train, test, share, seed, where)
        for share in semi_supervised or ()
    }
    chance = float(new.labels.unique(return_counts=True)[1].max()) / len(new.labels)
    sentence = (
        f"{len(known.labels):,} images to train probes on, {len(new.labels):,} to test on. Chance "
        f"is {chance:.2%}: always the most frequent class."
    )
    tables = [(["on the test images", *found], _rows(found, len(new.labels)))]
    if tuned:
        tables.append((["fine-tuned on", *tuned], _rows(tuned, len(new.labels))))
    say(sentence)
    for header, rows in tables:
        print_table(header, rows, right=set(header[1:]))
    say(_INTERVALS)
    result = {
        "model": model,
        "checkpoint": None if checkpoint is None else checkpoint.name,
        "data": data if data == "digits" else Path(data).name,
        "chance": chance,
        "intervals": {
            site: {
                name: wilson_interval(value, len(new.labels))
                for name, value in numbers.items()
                if _is_share_of_images(name)
            }
            for site, numbers in found.items()
        },
        "images": {"train": len(known.labels), "test": len(new.labels)},
        "seed": seed,
        "torch": torch.__version__,
        "sites": found,
        **({"semi_supervised": tuned} if tuned else {}),
    }
    body = "\n\n".join([*(markdown_table(*table) for table in tables), _INTERVALS])
    _write(output, result, spectra, sentence, body)


def _check(probes: Iterable[str], shares: Iterable[float]) -> None:
    from ..evaluation import PROBES, SEMI_SUPERVISED

    if unknown := sorted(set(probes) - set(PROBES)):
        raise OptionError(
            "--probe", f"There is no probe {unknown[0]}; there are {', '.join(PROBES)}."
        )
    if other := sorted(set(shares) - set(SEMI_SUPERVISED)):
        raise OptionError(
            "--semi-supervised", f"VICReg has settings for 0.01 and 0.1, none for {other[0]:g}."
        )


def _write(
    output: Path, result: dict[str, Any], spectra: dict[str, Tensor], sentence: str, body: str
) -> None:
    from ..experiments import draw_spectra

    numbers, picture = output / "evaluation.json", output / "spectra.png"
    numbers.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    draw_spectra(spectra, picture, f"Covariance spectrum of {result['model']}, test images")
    report = Report(
        title=f"Features of {result['model']}",
        verdict=[sentence],
        figure=("Spectra of the features' covariances", picture.name),
        body=body,
        settings={name: result[name] for name in ("model", "checkpoint", "data", "seed")},
    )
    say_written(numbers, picture, *report.write(output))


def _fine_tuned(
    model: Any, train: Any, test: Any, share: float, seed: int, device: Any
) -> dict[str, float]:
    from ..evaluation import semi_supervised_probe

    with Progress(f"fine-tuning on {share:.0%} of the labels", passing=True):
        pairs = _pairs(train), _pairs(test)
        found = semi_supervised_probe(model, *pairs, share, seed=seed, device=device)
    return {
        "labelled": found.details["labelled"],
        "accuracy": found.accuracy,
        "class_accuracy": found.class_accuracy,
        "top5_accuracy": float(found.top5_accuracy or 0),
    }


def _pairs(batches: Any) -> Any:
    """Return batches as (image, label) pairs: the data set of a loader, or tensors."""
    import torch

    if isinstance(batches, list):
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    return batches.dataset


def _small(batches: Any) -> Tensor:
    """Return the images at 32×32 or less: enough for the estimate, and few enough numbers."""
    import torch

    parts = [images for images, _ in batches]
    side = min(32, *parts[0].shape[2:])
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(part, side) for part in parts])


def _is_share_of_images(metric: str) -> bool:
    """Whether a metric is a share of images; a mean of classes is not."""
    return metric.endswith("_accuracy") and not metric.endswith("_class_accuracy")


def _rows(found: dict[str, dict[str, float]], images: int) -> list[list[str]]:
    rows = []
    for metric in next(iter(found.values())):
        shares = metric.endswith(("_accuracy", "_precision")) or metric.startswith("share")
        unit = " (nats)" if metric == "mutual_information" else ""
        cells = []
        for numbers in found.values():
            cell = format(numbers[metric], ".2%" if shares else ".4g")
            if _is_share_of_images(metric):
                low, high = wilson_interval(numbers[metric], images)
                cell += f" ({100 * low:.1f}–{100 * high:.1f})"
            cells.append(cell)
        rows.append([metric.replace("_", " ") + unit, *cells])
    return rows
