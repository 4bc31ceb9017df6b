"""Arguments and options that several commands share. Nothing here imports torch."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

FORMS = "timm/NAME, torchvision/NAME, transformers/CLASS, package.module:factory or file.py:factory"
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.")]
RuleText = Annotated[
    str, typer.Option(metavar="EXPR", help='Where, such as "blocks | downsample".')
]
LayoutText = Annotated[
    str | None, typer.Option(help="The layout of every site, such as NHWC; else inferred.")
]
MOST_SEED = 2**32 - 1  # of NumPy and scikit-learn
MOST_THREADS = 1024


def finite(value: float | None) -> float | None:
    """Refuse what is no number, which no bound does."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def to_file(path: Path | None) -> Path | None:
    """Refuse a file that cannot be made, before any work is done for it."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder, not a file.")
        if not path.parent.is_dir():
            raise typer.BadParameter(f"There is no folder {path.parent} to write {path.name} to.")
        _check_access(path if path.exists() else path.parent)
    return path


def to_folder(path: Path | None) -> Path | None:
    """Refuse a folder that cannot be made, before any work is done for it."""
    if path is not None:
        there = next(part for part in (path, *path.absolute().parents) if part.exists())
        if not there.is_dir():
            raise typer.BadParameter(f"{there} is a file, not a folder.")
        _check_access(there)
    return path


def _check_access(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written to.")


def folder_option(help: str) -> Any:  # noqa: A002 (as typer has it)
    """Return the option of a folder to write to: ``-o DIR``."""
    return typer.Option("-o", "--output", metavar="DIR", callback=to_folder, help=help)


def json_option(help: str) -> Any:  # noqa: A002
    """Return the option of a file for numbers: ``--json FILE``."""
    return typer.Option("--json", metavar="FILE", callback=to_file, help=help)


def seed_option(help: str) -> Any:  # noqa: A002
    """Return the option of a seed that NumPy and scikit-learn take."""
    return typer.Option(min=0, max=MOST_SEED, help=help)


def threads_option(help: str) -> Any:  # noqa: A002
    """Return the option of a number of threads."""
    return typer.Option(min=1, max=MOST_THREADS, help=help)


def settings_option(help: str) -> Any:  # noqa: A002
    """Return the option of settings by their names: ``--set NAME=VALUE``."""
    return typer.Option("--set", metavar="NAME=VALUE", parser=parse_setting, help=help)


Alpha = Annotated[
    float | None,
    typer.Option(min=0, callback=finite, help="α, of the variance loss; else VCRegConfig's."),
]
Beta = Annotated[
    float | None,
    typer.Option(min=0, callback=finite, help="β, of the covariance loss; else VCRegConfig's."),
]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights: a state dict. Else they are random.")
]


def parse_value(text: str) -> Any:
    """Return a number, true, false or null, as JSON or Python write them; else the string."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


def parse_setting(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise typer.BadParameter(f"{text!r} is no setting. Write NAME=VALUE: num_classes=10.")
    return name, parse_value(value)


def _parse_size(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a size. Write whole numbers with commas between: 3,32,32."
        )
    return size


Settings = Annotated[
    list[Any] | None,  # pairs of name and value
    settings_option("For building the model, such as num_classes=10; may be repeated."),
]
InputSize = Annotated[
    Any,  # whole numbers, or None
    typer.Option(
        metavar="C,H,W", parser=_parse_size, help="The size of one example; else worked out."
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given: not None."""
    return {name: value for name, value in options.items() if value is not None}
