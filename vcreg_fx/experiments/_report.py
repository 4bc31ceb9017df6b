"""Write the demo's report: words, numbers, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..export import draw
from ._digits import GROUPS
from ._rows import COLUMNS, rows
from ._spectra import draw_spectra
from ._words import conclusions, probe_counts

if TYPE_CHECKING:
    from ._demo import DemoResult


def write_report(result: DemoResult, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.json``, ``spectra.png`` and ``model.png``; return the paths."""
    names = ("report.md", "report.json", "spectra.png", "model.png")
    report, numbers, spectra, model = (folder / name for name in names)
    draw_spectra(
        {"without VCReg": result.plain.spectrum, "with VCReg": result.vcreg.spectrum},
        spectra,
        "Covariance spectrum of the head's input, test images",
    )
    draw(result.plan, model)
    numbers.write_text(json.dumps(as_data(result), indent=2, ensure_ascii=False) + "\n", "utf-8")
    report.write_text(_markdown(result), "utf-8")
    return [report, numbers, spectra, model]


def as_data(result: DemoResult) -> dict[str, Any]:
    """Return everything that was found as plain data."""
    wins, losses = probe_counts(result)
    return {
        "settings": result.settings.to_dict(),
        "groups": {name: list(members) for name, members in GROUPS.items()},
        "sites": [site.to_dict() for site in result.plan.sites],
        "gradient_check": {
            "largest_relative_error_float32": result.largest_error,
            "largest_relative_error_float64": max(check.float64 for check in result.checks),
            "sites": [vars(check) for check in result.checks],
        },
        "without_vcreg": result.plain.to_dict(),
        "with_vcreg": result.vcreg.to_dict(),
        "probe_right_only_with_vcreg": wins,
        "probe_right_only_without_vcreg": losses,
        "seconds": result.seconds,
        "torch": torch.__version__,
    }


def _markdown(result: DemoResult) -> str:
    settings = result.settings
    groups = ", ".join(f"{name} ({_join(members)})" for name, members in GROUPS.items())
    lines = [
        "# VCReg on handwritten digits",
        "",
        "A ConvNeXt-Atto was trained twice on scikit-learn's digits, enlarged to 32×32 pixels: "
        f"from the same weights, on the same batches in the same order, for {settings.steps} steps "
        f"of {settings.batch_size} images (seed {settings.seed}). The labels are coarse, three "
        f"groups of digits that look alike: {groups}. Then both models were frozen, and a linear "
        "classifier was trained to tell all ten digits from the input of the model's head. "
        f"It was trained on the training images; every number below is measured on the "
        f"{len(result.vcreg.probe_right)} test images, which neither model nor classifier has "
        "seen.",
        "",
        *_table(COLUMNS, rows(result)),
        "",
        "## In words",
        "",
        *[f"- {sentence}" for sentence in conclusions(result)],
        "",
        "## The covariance spectra",
        "",
        "A flatter curve means that features vary in more directions.",
        "",
        "![Eigenvalues of both covariance matrices](spectra.png)",
        "",
        "## The gradient",
        "",
        "VCReg's injected gradient was compared with that of the naive loss by autograd, one site "
        "at a time, over all parameters. The largest relative error is "
        f"{result.largest_error:.1e} in float32 and "
        f"{max(check.float64 for check in result.checks):.1e} in float64.",
        "",
        *_table(
            ("site", "float32", "float64"),
            [(f"`{c.name}`", f"{c.float32:.1e}", f"{c.float64:.1e}") for c in result.checks],
        ),
        "",
        "## The model",
        "",
        f"VCReg (α = {settings.alpha:g}, β = {settings.beta:g}) was inserted by the rule "
        f"`{settings.rule}` at {len(result.plan.sites)} sites.",
        "",
        "![The model with its sites](model.png)",
        "",
    ]
    return "\n".join(lines)


def _table(header: tuple[str, ...], body: list[tuple[str, str, str]]) -> list[str]:
    every = [header, ("---", "---:", "---:"), *body]
    return ["| " + " | ".join(cells) + " |" for cells in every]


def _join(members: tuple[int, ...]) -> str:
    return ", ".join(map(str, members))
