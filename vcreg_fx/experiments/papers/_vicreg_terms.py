"""What keeps BYOL, SimSiam and VICReg from collapsing (VICReg's table 4 and appendix D.8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._shared.pictures import head, panels
from ...ablation import Trial
from ..training import TrainSettings
from ..training._self_supervised import Method
from ._experiment import Arm, Experiment, Metric, Paper, Preset
from ._image_task import Roles
from ._pictures import COLORS
from ._ssl import OWN, OWN_PROBE, SPREAD, SelfSupervisedTask, lars, viewed
from ._transfer import tasks

COLLAPSED = 0.5
"""A std of l2-normalized embeddings below this share of 1/√d is a collapse."""

ROWS: dict[str, dict[str, Any]] = {
    "BYOL, ME SG PR BN": {"family": "byol"},
    "SimSiam, SG PR BN": {"family": "simsiam"},
    "SimSiam, SG PR": {"family": "simsiam", "norm": "none"},
    "SimSiam, SG": {"family": "simsiam", "norm": "none", "predicts": False},
    "VICReg, PR": {"family": "vicreg", "norm": "none", "predicts": True},
    "VICReg, PR BN": {"family": "vicreg", "predicts": True},
    "VICReg, BN": {"family": "vicreg"},
    "VICReg": {"family": "vicreg", "norm": "none"},
}
"""Table 4's rows: momentum encoder, stop-gradient, predictor and batch norm, as section 6 says."""

TERMS: dict[str, tuple[bool, bool]] = {
    "none": (False, False), "var": (True, False), "var + cov": (True, True),
}  # fmt: skip
"""Column → whether there is a variance and a covariance term."""

_PRINTED: dict[str, tuple[float | None, float, float]] = {
    "BYOL, ME SG PR BN": (69.3, 70.2, 69.5),
    "SimSiam, SG PR BN": (67.9, 68.1, 67.6),
    "SimSiam, SG PR": (35.1, 67.3, 67.1),
    "SimSiam, SG": (None, 56.8, 66.1),
    "VICReg, PR": (None, 56.2, 67.3),
    "VICReg, PR BN": (None, 57.1, 68.7),
    "VICReg, BN": (None, 57.5, 68.6),
    "VICReg": (None, 56.5, 67.4),
}


def method_of(row: str, terms: str, heads: Any) -> Method:
    """Return a cell of table 4.

    **Arguments:**

    - `row`, `terms`: of `ROWS` and `TERMS`.
    - `heads`: family → widths of its expander and of its predictor.
    """
    found = ROWS[row]
    family = found["family"]
    variance, covariance = TERMS[terms]
    expander, predictor = (tuple(widths) for widths in heads[family])
    predictor = predictor if found.get("predicts", family != "vicreg") else ()
    if family == "vicreg":
        norm = found.get("norm", "inner")
        return Method(
            variance=25.0 * variance, covariance=1.0 * covariance,
            expander=expander, predictor=predictor, norm=norm,
        )  # fmt: skip
    return Method(
        "normalized square" if family == "byol" else "cosine",
        1.0, 1.0 * variance, 0.01 * covariance, expander, predictor,
        norm=found.get("norm", "inner" if family == "byol" else "all"),
        stop_gradient=True, momentum=0.99 if family == "byol" else 0.0,
    )  # fmt: skip


TRAINING = lars(0.3, 2048, warmup_epochs=10, weight_decay=1e-6, final_rate=0.002)
"""VICReg's own, in its ablations (C.4)."""


def collapsing(preset: Preset) -> tuple[Metric, ...]:
    """Return what a `CollapsingTask` reports."""
    return (*tasks(preset), OWN_PROBE, *SPREAD, Metric("collapsed", "collapsed", higher=False))


class CollapsingTask(SelfSupervisedTask):
    """Says whether the embeddings have collapsed, beside the accuracy of a probe."""

    def score(self, model: Any, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return the accuracy of a probe, and whether the embeddings have collapsed."""
        found = super().score(model, roles, trial)
        return {**found, "collapsed": float(found["std_z"] < COLLAPSED)}


class TermsTask(CollapsingTask):
    """Trains the cells of table 4.

    An option of its own: `heads`, see `method_of`.
    """

    def method(self, trial: Trial) -> Method:
        """Return the cell of a trial."""
        return method_of(trial["row"], trial["terms"], self.preset["heads"])


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        simsiam = {"optimizer": "sgd", "learning_rate": 0.05 * 2048 / 256, "final_rate": 0.0,
                   "weight_decay": 1e-4, "norm_weight_decay": None, "batch_size": 2048,
                   "views": "simsiam"}  # fmt: skip
        return Preset(
            data or "imagenet",
            "torchvision/resnet50",
            TRAINING,
            grid={},
            seeds=2,
            options={
                **OWN, "probe": "sgd",
                "heads": {
                    "byol": ((4096, 256), (4096, 256)), "simsiam": ((2048,) * 3, (512, 2048)),
                    "vicreg": ((8192,) * 3, (8192, 8192)),
                },
                "rates": {
                    "byol": {"learning_rate": 0.45 * 4096 / 256, "final_rate": 0.0,
                             "batch_size": 4096, "views": "byol"},
                    "simsiam": simsiam,
                },
            },
        )  # fmt: skip
    heads = {"byol": ((128, 64), (128, 64)), "simsiam": ((64,) * 3, (32, 64)),
             "vicreg": ((128,) * 3, (128, 128))}  # fmt: skip
    options = {**OWN, "crop": 0.3, "drawn": 6, "probe": "adamw", "heads": heads}
    if scale == "quick":
        return Preset(
            data or "digits", "resnet8-half", TrainSettings(epochs=4, batch_size=64), grid={},
            train_images=300, validation=300, seeds=2, options={**options, "drawn": 4},
        )  # fmt: skip
    return Preset(
        data or "fashion-mnist",
        "resnet8-half",
        TrainSettings(epochs=6, batch_size=32, learning_rate=4e-3),
        train_images=900 if data == "digits" else 1_500,
        validation=290 if data == "digits" else 4_000,
        grid={},
        seeds=2,
        size=24 if data == "glyphs" else None,
        options=options,
    )


def arms(preset: Preset) -> list[Arm]:
    """Return the cells of table 4, row by row; each row's first is compared with its others."""
    found = []
    for row, parts in ROWS.items():
        own = dict(preset["rates"].get(parts["family"], {}))
        if own.get("optimizer") == "sgd" and parts.get("predicts", True):
            own["constant_rate"] = "predictor."
        found += [
            Arm(f"{row}: {terms}", None, {"row": row, "terms": terms, **own},
                versus=f"{row}: none")
            for terms in TERMS
        ]  # fmt: skip
    return found


def draw_terms(report: dict[str, Any], path: Path) -> None:
    """Draw, for each row of the table, what tells a collapse over training, seed by seed."""
    rows = {row["name"]: row for row in report["rows"]}
    shown = [row for row in ROWS if any(f"{row}: {terms}" in rows for terms in TERMS)]
    names = [metric.name for metric in SPREAD]
    size = (1.3 + 1.75 * len(shown), 1.75 * len(names))
    figure, grid = panels(len(names) * len(shown), size, len(shown), sharex=True, sharey="row")
    for place, axes in enumerate(grid):
        metric, row = SPREAD[place // len(shown)], shown[place % len(shown)]
        for terms, color in zip(TERMS, COLORS, strict=False):
            found = rows.get(f"{row}: {terms}")
            for numbers in found["by_seed"].values() if found else ():
                epochs = sorted(int(k[len(metric.name) + 1 :]) for k in numbers
                                if k.startswith(f"{metric.name}_"))  # fmt: skip
                values = [numbers[f"{metric.name}_{epoch}"] for epoch in epochs]
                axes.plot(epochs, values, "-", color=color, linewidth=1.2)
        first = place < len(shown)
        head(
            axes,
            row.replace(", ", "\n") if first else "",
            "epoch" if place >= 3 * len(shown) else "",
        )
        axes.title.set_fontsize(8)
        if place % len(shown) == 0:
            axes.set_ylabel(
                metric.title.replace(", ", "\n").replace(" of ", "\nof ", 1), fontsize=7
            )
    lines = [grid[0].plot([], [], color=color, label=terms)[0]
             for terms, color in zip(TERMS, COLORS, strict=False)]  # fmt: skip
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=70)


VICREG_TERMS = Experiment(
    name="vicreg-terms",
    title="What keeps features from collapsing",
    summary="BYOL, SimSiam and VICReg with a variance term, and a covariance term, and without",
    presets=viewed(presets),
    arms=arms,
    task=TermsTask,
    metrics=collapsing,
    criterion="own",
    headline=("own", "std_z"),
    paper=Paper(
        where="VICReg's table 4",
        columns=tuple(TERMS),
        rows=_PRINTED,
        unit="top-1 accuracy of linear probes in %",
        protocol="ResNet-50, 100 epochs on ImageNet. ME: momentum encoder, SG: stop-gradient, PR: "
        "predictor, BN: batch norm in expander and predictor. The text lost the column of each "
        "tick; the rows are those that section 6 describes.",
    ),
    draw=draw_terms,
)
