"""Errors as one clear message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from placement_rules import ExampleInputsError, UserError


class ModelError(UserError):
    """A model that the command line names does not exist or cannot be built."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print what a user can do something about to stderr, without a traceback; exit with 1."""
    try:
        yield
    except (UserError, OSError, ModuleNotFoundError) as error:
        message = str(error)
        if isinstance(error, ExampleInputsError):
            message += (
                "\nOn the command line: --input-size, such as 3,224,224 for images or "
                "3,16,224,224 for clips."
            )
        elif isinstance(error, OSError):
            message = f"{error.filename}: {error.strerror}"
        elif isinstance(error, ModuleNotFoundError):
            message = (
                f"the package {error.name} is needed for this and is not installed. "
                f"Install it: pip install {error.name}"
            )
        typer.echo(f"Error: {message}", err=True)
        raise typer.Exit(1) from error
