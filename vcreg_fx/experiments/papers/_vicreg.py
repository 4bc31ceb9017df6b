"""VICReg's ablations as axes of one study (its tables 5, 7, 8, 12 and 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._shared.pictures import head, panels
from ..._shared.statistics import finite_values, summary_of
from ..training import TrainSettings
from ._experiment import Arm, Experiment, Paper, Preset, ReproductionError
from ._pictures import COLORS
from ._ssl import OWN, SPREAD, viewed
from ._vicreg_terms import TRAINING, CollapsingTask, collapsing

BASE = "VICReg"
COEFFICIENTS = (
    (1, 0, 0), (25, 0, 1), (0, 25, 1), (1, 1, 0),
    (1, 1, 1), (1, 10, 1), (10, 1, 1), (5, 5, 1), (10, 10, 1), (25, 25, 1), (50, 50, 1),
)  # fmt: skip
"""λ, µ and ν of table 7."""

NORMALIZATIONS = (("inner", "none"), ("inner", "std"), ("none", "std"), ("none", "none"),
                  ("none", "l2"))  # fmt: skip
"""Of the expander's hidden layers and of the embeddings: table 8. See `_TABLE_8` for its rows."""

_TABLE_7 = (None, None, None, 57.5, None, None, None, 68.1, 68.2, 68.6, 68.3)
_TABLE_8 = (68.6, 68.4, 67.2, 67.4, 65.1)
"""As printed, rows three and four are None/Std 67.4 and once more Std/None 67.2. Table 4 has VICReg
without batch norm, which is None/None, with 67.4; so 67.2 is left for None/Std."""
_TABLE_5 = {"SimCLR": (64.4, 63.1, 63.9, 63.5), "Barlow Twins": (68.7, 64.2, 65.3, 63.9),
            BASE: (68.6, 66.5, 68.1, 66.2)}  # fmt: skip
_TABLE_12 = {256: 55.9, 512: 59.2, 1024: 62.4, 2048: 65.1, 4096: 67.3, 8192: 68.6, 16384: 68.8}
"""The table prints 16834 where its text says 16384."""
_TABLE_13 = {128: 67.3, 256: 67.9, 512: 68.2, 1024: 68.3, 2048: 68.6, 4096: 67.8}
BASE_RATES = {128: 0.8, 256: 0.5, 512: 0.4}
"""Of table 13's batch sizes (C.4); 0.3 for all others."""

AXES = ("coefficients", "normalization", "branches", "width", "batch")


class VICRegTask(CollapsingTask):
    """Trains VICReg and its rivals; a trial may change the width of the last two or three layers.

    Options of its own:

    - `axes`: which of `AXES` have arms.
    - `widths`, `batches`: the values of the last two axes.
    - `networks`: of the second branch, for branches of different architectures; the names of their
      columns in table 5 beside them.
    """

    def check(self) -> None:
        """Refuse axes that there are not."""
        super().check()
        if unknown := sorted({*self.preset["axes"]} - {*AXES}):
            raise ReproductionError(f"There is no axis {unknown[0]}; there are {', '.join(AXES)}.")


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        return Preset(
            data or "imagenet",
            "torchvision/resnet50",
            TRAINING,
            grid={},
            seeds=3,
            options={
                **OWN, "probe": "sgd", "axes": AXES, "methods": methods_of(8192, 0.1),
                "widths": tuple(_TABLE_12), "batches": {
                    batch: BASE_RATES.get(batch, 0.3) * batch / 256 for batch in _TABLE_13
                },
                "networks": {
                    "R101": "torchvision/resnet101", "ViT-S": "timm/vit_small_patch16_224",
                },
            },
        )  # fmt: skip
    options = {
        **OWN, "crop": 0.3, "drawn": 6, "probe": "adamw", "axes": AXES,
        "methods": methods_of(128, 0.2), "widths": (16, 128, 512),
        "batches": {16: 4e-3, 32: 4e-3, 128: 4e-3},
        "networks": {"ConvNeXt": "convnext-mini"},
    }  # fmt: skip
    if scale == "quick":
        return Preset(
            data or "digits", "resnet8-half", TrainSettings(epochs=2, batch_size=64), grid={},
            train_images=200, validation=300, seeds=2,
            options={**options, "drawn": 4, "widths": (16, 128), "batches": {32: 4e-3, 64: 4e-3}},
        )  # fmt: skip
    return Preset(
        data or "fashion-mnist",
        "resnet8-half",
        TrainSettings(epochs=6, batch_size=32, learning_rate=4e-3),
        train_images=600,
        validation=290 if data == "digits" else 4_000,
        grid={},
        seeds=3,
        size=32,  # a ConvNeXt halves it five times
        options=options,
    )


def methods_of(width: int, temperature: float) -> dict[str, dict[str, Any]]:
    """Return VICReg and its rivals in table 5, with an expander of three layers of a width."""
    expander = (width,) * 3
    return {
        BASE: {"expander": expander},
        "Barlow Twins": {"loss": "barlow", "expander": expander},
        "SimCLR": {"loss": "simclr", "expander": expander, "temperature": temperature},
    }


def arms(preset: Preset) -> list[Arm]:
    """Return VICReg as it is, and what each axis changes of it; each value once."""
    axes = preset["axes"]
    base = {"method": BASE}
    found = [Arm(BASE, None, base)]
    if "coefficients" in axes:
        found += [
            Arm(f"λ {a}, µ {b}, ν {c}", None,
                {**base, "invariance": float(a), "variance": float(b), "covariance": float(c)})
            for a, b, c in COEFFICIENTS if (a, b, c) != (25, 25, 1)
        ]  # fmt: skip
    if "normalization" in axes:
        found += [
            Arm(normalization(*row), None, {**base, "norm": row[0], "embedding": row[1]})
            for row in NORMALIZATIONS[1:]
        ]
    if "branches" in axes:
        for method in preset["methods"]:
            if method != BASE:
                found.append(Arm(method, None, {"method": method}))
            own = {"method": method, "branches": "own"}
            kinds = {"own weights": own}
            kinds |= {kind: {**own, "network": name} for kind, name in preset["networks"].items()}
            found += [
                Arm(f"{method}, {kind}", None, fixed, versus=method)
                for kind, fixed in kinds.items()
            ]
    if "width" in axes:
        found += [
            Arm(f"width {width}", None, {**base, "width": width})
            for width in preset["widths"] if width != preset["methods"][BASE]["expander"][0]
        ]  # fmt: skip
    if "batch" in axes:
        found += [
            Arm(f"batch {batch}", None, {**base, "batch_size": int(batch), "learning_rate": rate})
            for batch, rate in preset["batches"].items()
            if int(batch) != preset.training.batch_size
        ]
    return found


def normalization(norm: str, embedding: str) -> str:
    """Return how table 8 calls a row."""
    return f"hidden {'Std' if norm == 'inner' else 'None'}, embedding {embedding.capitalize()}"


def printed() -> dict[str, tuple[float | None]]:
    """Return the numbers of the tables, by the names of the arms of the preset ``"paper"``."""
    found: dict[str, float | None] = {BASE: 68.6}
    for (a, b, c), value in zip(COEFFICIENTS, _TABLE_7, strict=True):
        found[f"λ {a}, µ {b}, ν {c}"] = value
    for row, value in zip(NORMALIZATIONS, _TABLE_8, strict=True):
        found[normalization(*row)] = value
    for method, values in _TABLE_5.items():
        names = (method, *(f"{method}, {kind}" for kind in ("own weights", "R101", "ViT-S")))
        found.update(zip(names, values, strict=True))
    found.update({f"width {width}": value for width, value in _TABLE_12.items()})
    found.update({f"batch {batch}": value for batch, value in _TABLE_13.items()})
    return {name: (value,) for name, value in found.items()}


def draw_axes(report: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy of every arm, and the spread of its embeddings, seed by seed."""
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    figure, grid = panels(2, (8.5, 1.3 + 0.19 * len(rows)), sharey=True)
    for axes, name, title, scale in zip(
        grid, ("own", "std_z"), ("accuracy of a probe, %", SPREAD[0].title), (100, 1), strict=True
    ):
        for height, row in enumerate(rows):
            summary = summary_of(row["by_seed"], "collapsed")
            color = COLORS[0] if summary.mean > 0 else COLORS[1]
            values = [scale * v for v in finite_values(row["by_seed"], name).values()]
            axes.plot(values, [height] * len(values), "o", color=color, alpha=0.6, markersize=4)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        head(axes, title, "red: collapsed, with a seed at least", "x")
    figure.savefig(path, dpi=80)


VICREG = Experiment(
    name="vicreg",
    title="VICReg's ablations",
    summary="coefficients, normalizations, branches, width and batch, with SimCLR and Barlow Twins",
    presets=viewed(presets),
    arms=arms,
    task=VICRegTask,
    metrics=collapsing,
    criterion="own",
    headline=("own",),
    paper=Paper(
        where="VICReg's tables 5, 7, 8, 12 and 13",
        columns=("Top-1",),
        rows=printed(),
        unit="top-1 accuracy of linear probes in %",
        protocol="ResNet-50, 100 epochs on ImageNet, λ = µ = 25, ν = 1, an expander of 8192 and "
        "batches of 2048 where nothing else is said.",
    ),
    draw=draw_axes,
)
