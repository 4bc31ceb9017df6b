"""What the demo found: in numbers, in words, and as a report with pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._shared.pictures import panels, plain
from .._shared.report import Report
from .._shared.tables import markdown_table
from ..evaluation import sign_test
from ..exporting import draw
from ..gradient import VCRegConfig
from ..surgery import Plan
from ._digits_ablation import STEPS, TRAINING
from ._gradient_check import SiteCheck
from .images._digits import GROUPS

_COLORS = ("#5b6470", "#d1495b", "#2e7d8c", "#8a63a6")
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    **Arguments:**

    - `seed`: of the split, of the initial weights, and of the order of the images.
    - `steps`: training steps of each model, at least 3: up, at the top, and down again.
    - `batch_size`: images in a step.
    - `learning_rate`: the largest of a one-cycle schedule of AdamW.
    - `weight_decay`: AdamW's.
    - `rule`: where VCReg is inserted. By default at the blocks, where the paper settles on, and at
      the head's input, because the features are measured there.
    - `alpha`, `beta`: the coefficients; by default those of `VCRegConfig`, not tuned for this data.
    - `check_images`: images in the batch on which gradients are compared.
    - `threads`: CPU threads. With one, the numbers do not depend on the number of cores, and small
      images gain little from more.
    """

    seed: int = 0
    steps: int = STEPS
    batch_size: int = TRAINING.batch_size
    learning_rate: float = TRAINING.learning_rate
    weight_decay: float = TRAINING.weight_decay
    rule: str = "blocks | head"
    alpha: float = VCRegConfig.alpha
    beta: float = VCRegConfig.beta
    check_images: int = 32
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what would fail late."""
        least = {"steps": 3, "batch_size": 2, "check_images": 2, "threads": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {bound}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Measurements:
    """What was measured on the test images; features are the head's input.

    **Attributes:**

    - `coarse_accuracy`: of the model itself, on the labelling it was trained on.
    - `probe_accuracy`: of a linear classifier of all ten digits, trained on the features of the
      training images.
    - `low_spread`: the share of features with a standard deviation below 1.
    - `correlation`: the mean absolute correlation of two different features.
    - `rank`: the effective rank of the features' covariance.
    - `train_loss`: the classification loss of the last training step.
    - `seconds`: of training.
    - `spectrum`: the eigenvalues of the features' covariance, the largest first.
    - `probe_right`: for which test images the linear classifier was right.
    """

    coarse_accuracy: float
    probe_accuracy: float
    low_spread: float
    correlation: float
    rank: float
    train_loss: float
    seconds: float
    spectrum: Tensor
    probe_right: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        numbers = {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)}
        return {**numbers, "spectrum": self.spectrum.tolist()}


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found.

    **Attributes:**

    - `settings`: what was asked for.
    - `plan`: where VCReg was inserted.
    - `checks`: the comparison of gradients, one a site.
    - `plain`, `vcreg`: the measurements of the model trained without and with VCReg.
    - `seconds`: how long all of it took.
    """

    settings: DemoSettings
    plan: Plan
    checks: list[SiteCheck]
    plain: Measurements
    vcreg: Measurements
    seconds: float

    @property
    def largest_error(self) -> float:
        """The largest relative error of a site's gradient in float32."""
        return max(check.float32 for check in self.checks)


# Its words ------------------------------------------------------------------------------------


COLUMNS = ("on the test images", "without VCReg", "with VCReg")


def rows(result: DemoResult) -> list[tuple[str, str, str]]:
    """Return what was measured: name, without VCReg, with VCReg."""

    def row(name: str, attribute: str, form: str) -> tuple[str, str, str]:
        plain, vcreg = getattr(result.plain, attribute), getattr(result.vcreg, attribute)
        return name, format(plain, form), format(vcreg, form)

    return [
        row("accuracy, coarse labels", "coarse_accuracy", ".2%"),
        row("accuracy, linear probe on ten digits", "probe_accuracy", ".2%"),
        row("features with std below 1", "low_spread", ".1%"),
        row("mean absolute off-diagonal correlation", "correlation", ".3f"),
        row("effective rank of the covariance", "rank", ".1f"),
        row("classification loss, last training step", "train_loss", ".4f"),
        row("seconds of training and measuring", "seconds", ".1f"),
    ]


def probe_counts(result: DemoResult) -> tuple[int, int]:
    """Return the test images on which only one probe is right: VCReg's, the other's."""
    ours, theirs = result.vcreg.probe_right, result.plain.probe_right
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


def conclusions(result: DemoResult) -> list[str]:
    """Return sentences on what was measured, whichever way it went."""
    plain, vcreg = result.plain, result.vcreg
    wins, losses = probe_counts(result)
    chance = sign_test(wins, losses)
    gain = 100 * (vcreg.probe_accuracy - plain.probe_accuracy)
    if abs(gain) < 0.005:
        probe = "The linear probe on all ten digits is equally accurate with and without VCReg."
    else:
        word = "more" if gain > 0 else "less"
        probe = (
            f"The linear probe on all ten digits is {abs(gain):.1f} points {word} accurate with "
            f"VCReg ({vcreg.probe_accuracy:.1%} against {plain.probe_accuracy:.1%})."
        )
    verdict = (
        "that is unlikely to be chance"
        if chance < 0.05
        else "that may well be chance, so the probe shows no clear difference in this run"
    )
    paired = (
        f"Of {len(vcreg.probe_right)} test images, {wins} are read correctly only with VCReg and "
        f"{losses} only without (sign test: p = {chance:.2g}): {verdict}."
    )
    return [
        probe,
        paired,
        _coarse(result),
        _change(result, "share of features with a standard deviation below 1", "low_spread", ".1%"),
        _change(result, "mean absolute correlation between features", "correlation", ".3f"),
        "This is one seed, one small data set and coefficients that were not tuned for it.",
    ]


def _coarse(result: DemoResult) -> str:
    plain, vcreg = result.plain.coarse_accuracy, result.vcreg.coarse_accuracy
    if plain == vcreg:
        return f"On the coarse labels, both models are right for {plain:.1%} of the images."
    word = "higher" if vcreg > plain else "lower"
    return (
        f"Accuracy on the coarse labels, which both were trained on, is {word} with VCReg "
        f"({vcreg:.1%} against {plain:.1%})."
    )


def _change(result: DemoResult, name: str, attribute: str, form: str) -> str:
    plain, vcreg = getattr(result.plain, attribute), getattr(result.vcreg, attribute)
    if round(plain, 3) == round(vcreg, 3):
        return f"The {name} is the same ({plain:{form}})."
    word = "falls" if vcreg < plain else "rises"
    aim = "as VCReg intends" if vcreg < plain else "against what VCReg intends"
    return f"The {name} {word} from {plain:{form}} to {vcreg:{form}}, {aim}."


# Its report -----------------------------------------------------------------------------------


def write_report(result: DemoResult, folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.json`` and pictures; return the paths."""
    numbers, spectra, model = (folder / n for n in ("report.json", "spectra.png", "model.png"))
    draw_spectra(
        {"without VCReg": result.plain.spectrum, "with VCReg": result.vcreg.spectrum},
        spectra,
        "Covariance spectrum of the head's input, test images",
    )
    draw(result.plan, model)
    numbers.write_text(json.dumps(as_data(result), indent=2, ensure_ascii=False) + "\n", "utf-8")
    figure = ("Eigenvalues of both covariance matrices: flatter is more varied", spectra.name)
    title, settings = "VCReg on handwritten digits", result.settings.to_dict()
    report = Report(title, conclusions(result), figure, _body(result), settings)
    return [numbers, spectra, model, *report.write(folder)]


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


def _body(result: DemoResult) -> str:
    settings = result.settings
    members = {name: ", ".join(map(str, digits)) for name, digits in GROUPS.items()}
    groups = ", ".join(f"{name} ({digits})" for name, digits in members.items())
    parts = [
        "A ConvNeXt-Atto was trained twice on scikit-learn's digits, enlarged to 32×32 pixels: "
        f"from the same weights, on the same batches in the same order, for {settings.steps} steps "
        f"of {settings.batch_size} images (seed {settings.seed}). The labels are coarse, three "
        f"groups of digits that look alike: {groups}. Then both models were frozen, and a linear "
        "classifier was trained to tell all ten digits from the input of the model's head. "
        f"It was trained on the training images; every number below is measured on the "
        f"{len(result.vcreg.probe_right)} test images, which neither model nor classifier has "
        "seen.",
        markdown_table(COLUMNS, rows(result)),
        "## The gradient",
        "VCReg's injected gradient was compared with that of the naive loss by autograd, one site "
        "at a time, over all parameters. The largest relative error is "
        f"{result.largest_error:.1e} in float32 and "
        f"{max(check.float64 for check in result.checks):.1e} in float64.",
        markdown_table(
            ("site", "float32", "float64"),
            [(f"`{c.name}`", f"{c.float32:.1e}", f"{c.float64:.1e}") for c in result.checks],
        ),
        "## The model",
        f"VCReg (α = {settings.alpha:g}, β = {settings.beta:g}) was inserted by the rule "
        f"`{settings.rule}` at {len(result.plan.sites)} sites.",
        "![The model with its sites](model.png)",
    ]
    return "\n\n".join(parts)


_LEAST = 1e-3  # of the mean: what lies below is next to nothing, and rounding in the end


def draw_spectra(spectra: Mapping[str, Tensor], path: str | Path, title: str) -> None:
    """Draw eigenvalues by index, one curve a model, so that a flatter spectrum is a flatter curve.

    Each spectrum is divided by its mean, and both axes are logarithmic: directions that all vary
    alike are the horizontal line at 1, whatever the scale of the features.

    **Arguments:**

    - `spectra`: label → eigenvalues, the largest first.
    - `path`: where the picture goes; its ending says in which format.
    - `title`: stands above.
    """
    from matplotlib.rcsetup import cycler

    figure, [axes] = panels(1, (7.2, 4.6))
    axes.set_prop_cycle(cycler(linestyle=_LINES) * cycler(color=_COLORS))
    for label, values in spectra.items():
        shares = (values / values.mean()).tolist() if values.sum() > 0 else []
        places = range(1, len(shares) + 1)
        axes.plot(places, shares, linewidth=2, label=label)
    axes.axhline(1, color="#9aa2ab", linewidth=1, label="all directions alike")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=_LEAST)
    axes.set_xlim(left=1)
    axes.set_xlabel("index of the eigenvalue, the largest first")
    axes.set_ylabel("eigenvalue of the covariance / their mean")
    axes.set_title(title, fontsize=11, loc="left")
    plain(axes)
    axes.legend(frameon=False, fontsize=10 if len(spectra) <= 6 else 7)
    figure.savefig(Path(path), dpi=150)
