"""The command and its subcommands."""

from __future__ import annotations

import codecs
import sys
from typing import Annotated

import typer

from .._version import __version__
from ._ablate import app as ablate
from ._bench import bench
from ._coverage import Coverage, coverage
from ._demo import demo
from ._errors import Command, Group, Lasting, LastingGroup
from ._evaluate import evaluate
from ._export import export
from ._measure import measure
from ._reproduce import reproduce
from ._sites import draw, sites

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vcreg-fx {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Variance-covariance regularization for PyTorch vision models."""


for command in (sites, measure, demo, draw, export, bench, evaluate):
    app.command(cls=Command)(command)
app.command(cls=Coverage)(coverage)
app.command(cls=Lasting)(reproduce)
app.add_typer(ablate, name="ablate", cls=LastingGroup)


_PLAIN = {"×": "x", "–": "-", "−": "-", "…": "...", "•": "*", "±": "+-", "≥": ">=", "≤": "<="}
_PLAIN |= {"α": "alpha", "β": "beta", "γ": "gamma", "ε": "eps", "∝": "~", "─": "-"}


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for letters that a terminal's encoding lacks, as with LC_ALL=C."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in lost)
    return plain, error.end


def main() -> None:
    """Run the command line."""
    codecs.register_error("vcreg_fx.plain", _in_plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what is no file, in a notebook, has no encoding
            stream.reconfigure(errors="vcreg_fx.plain")
    app(prog_name="vcreg-fx")
