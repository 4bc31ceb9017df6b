"""``vcreg-fx demo``: the whole of it on real images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ._options import Alpha, Beta, folder_option, given, seed_option, threads_option

_QUICK_STEPS = 40


def demo(
    output: Annotated[Path, folder_option("Where the report goes.")] = Path("demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Train less, to see that everything works.")
    ] = False,
    seed: Annotated[int, seed_option("Of the split, the weights, the order of the images.")] = 0,
    steps: Annotated[int | None, typer.Option(min=3, help="Training steps of each model.")] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Where VCReg is inserted.")
    ] = None,
    alpha: Alpha = None,
    beta: Beta = None,
    threads: Annotated[int, threads_option("CPU threads; with 1, all machines train alike.")] = 1,
) -> None:
    """Train a ConvNeXt-Atto on handwritten digits, with and without VCReg, and report.

    Nothing is downloaded. Takes a few minutes on a CPU, and under one with --quick.
    """
    from ..experiments import DemoSettings, run_demo
    from ._demo_console import ConsoleObserver

    chosen = given(
        steps=steps or (_QUICK_STEPS if quick else None), rule=rule, alpha=alpha, beta=beta
    )
    settings = DemoSettings(seed=seed, threads=threads, **chosen)
    with ExitStack() as bars:
        run_demo(output, settings, ConsoleObserver(bars))
