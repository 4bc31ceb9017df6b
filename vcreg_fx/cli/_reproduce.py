"""``vcreg-fx reproduce``: the papers' experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement_rules import UserError

from .._shared.progress import Progress
from ._console import print_markdown, say_trial, say_written
from ._errors import OptionError
from ._options import folder_option, settings_option, threads_option

if TYPE_CHECKING:
    from ..ablation import Record


def reproduce(  # noqa: PLR0913, PLR0917 - an argument an option
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="transfer, video, placement, hierarchy, long-tail, two-moons, collapse, noise, "
            "timing, ssl, vicreg, vicreg-terms or modalities.",
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="On digits, to see that everything works.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "--scale",
            metavar="NAME",
            help="paper: the paper's data and settings. large: for half an hour of a GPU.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, glyphs, glyphs-200k, fashion-mnist, cifar10, cifar100 or imagenet; "
            "videos: moving-glyphs, hmdb51 or clips."
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where torchvision's loaders find the data, or videos lie."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME", help="living_9, mixed_10, mixed_13, geirhos_16, big_12, or a JSON file."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="timm/NAME, torchvision/NAME, or our own; videos: videomae-base, …"
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A way to regularize; may be repeated, else all."),
    ] = None,
    option: Annotated[
        list[Any] | None,  # pairs of name and value
        settings_option("Of the preset, such as protocol=finetune; may be repeated."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of transfer's baseline, which is not trained then; of a video network.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="How many runs of each, from seed 0.")
    ] = None,
    output: Annotated[Path | None, folder_option("Goes on with what is there.")] = None,
    threads: Annotated[int, threads_option("CPU threads.")] = 1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the numbers of each epoch to DIR/logs.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed trials again.")
    ] = False,
    evidence: Annotated[
        Path | None,
        typer.Option(metavar="DOCS", help="Put the result into evidence.md in this folder, too."),
    ] = None,
) -> None:
    """Run one of the papers' experiments and compare its numbers with the paper's.

    Coefficients are searched on validation images; test images are used once.
    A run that was stopped goes on where it was when it is started again.
    """
    from ..experiments import papers
    from ..experiments.papers._outcome import check_place

    if evidence is not None and not (evidence / "evidence.md").is_file():
        raise OptionError("--evidence", f"{evidence} holds no evidence.md.")
    scale = _scale(quick, preset)
    if evidence is not None:
        check_place(name, scale, evidence)
    options = dict(option or ())
    if weights is not None:
        if not weights.exists():
            raise OptionError("--weights", f"{weights} is not there.")
        options["weights"] = str(weights)
    where = output or Path("runs") / "-".join(
        part for part in (name, data, scale if scale != "default" else None) if part
    )
    with Progress(f"{name}, trials") as bar:

        def finished(record: Record) -> None:
            bar.advance(note=record.name, steps=0)
            say_trial(record, [metric for metric in record.metrics if "_" not in metric])

        outcome = papers.reproduce(
            name,
            where,
            scale=scale,
            data=data,
            data_root=data_root,
            network=network,
            arms=arm,
            options=options or None,
            seeds=seeds,
            classes=classes,
            threads=threads,
            tensorboard=tensorboard,
            retry_failed=retry_failed,
            on_record=finished,
            on_trials=bar.reach,
        )
    print_markdown(outcome.to_markdown())
    if evidence is not None:
        say_written(*papers.write_evidence(outcome, evidence))
    report = outcome.folder / "report.html"
    say_written(*sorted(outcome.folder.glob(f"{name}.*")), *([report] if report.exists() else []))


def _scale(quick: bool, preset: str | None) -> str:
    if quick and preset:
        raise UserError(f"--quick and --preset {preset} are different sizes; choose one.")
    return "quick" if quick else preset or "default"
