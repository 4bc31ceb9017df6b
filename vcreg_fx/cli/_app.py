"""The command and its subcommands."""

from __future__ import annotations

import typer

from ._ablate import app as ablate
from ._bench import bench
from ._coverage import coverage
from ._demo import demo
from ._draw import draw
from ._evaluate import evaluate
from ._export import export
from ._measure import measure
from ._reproduce import reproduce
from ._sites import sites

app = typer.Typer(
    help="Variance-covariance regularization for PyTorch vision models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (sites, measure, demo, draw, export, coverage, bench, evaluate, reproduce):
    app.command()(command)
app.add_typer(ablate, name="ablate")


def main() -> None:
    """Run the command line."""
    app(prog_name="vcreg-fx")
