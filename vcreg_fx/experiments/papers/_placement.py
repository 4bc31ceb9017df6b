"""Where VCReg acts: the four placements of VCReg's table 7."""

from __future__ import annotations

from ...evaluation import STRENGTHS
from ..images._downstream import TORCHVISION
from ..training import TrainSettings
from ._experiment import (
    APPENDIX_A,
    DEFAULTS,
    Arm,
    Experiment,
    Paper,
    Preset,
    strength_arms,
    vcreg_arms,
)
from ._transfer import OPTIONS, TransferTask, baseline, draw_tasks, metrics, quick

RULES = ("VCReg1", "VCReg2", "VCReg3", "VCReg4")


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        options = {**OPTIONS, "probes": tuple(TORCHVISION), "strengths": STRENGTHS}
        return Preset(data or "imagenet", **APPENDIX_A, options=options)
    if scale == "quick":
        return quick(data).but(network="convnext-mini")
    digits = data == "digits"
    return Preset(
        data or "fashion-mnist",
        "convnext-mini",
        TrainSettings(epochs=30 if digits else 4, batch_size=64),
        train_images=900 if digits else 2_000,
        validation=290 if digits else 5_000,
        grid=DEFAULTS,
        size=32,
        options={
            **OPTIONS,
            "seen": 6,
            "probes": ("unseen", "all") if digits else ("unseen", "all", "digits"),
            "strengths": (0.01, 1.0, 100.0),
        },
    )


def arms(preset: Preset) -> list[Arm]:
    """Return what is compared: no VCReg, and the arms of VCReg at each placement.

    Strengths that are found stand at the second placement alone, which the paper chose.
    """
    none, *_ = baseline(preset)
    at_each = [arm for rule in RULES for arm in vcreg_arms(preset.grid, rule, rule)]
    return [none, *at_each, *strength_arms(preset.grid, RULES[1], RULES[1])]


PLACEMENT = Experiment(
    name="placement",
    title="Where VCReg acts",
    summary="the four placements and none, several downstream probes",
    presets=presets,
    arms=arms,
    task=TransferTask,
    metrics=metrics,
    criterion="mean",
    headline=("mean", "own"),
    paper=Paper(
        where="table 7",
        columns=("Food", "Cars", "Aircraft", "Pets", "Flowers", "DTD"),
        rows={
            "ConvNeXt-Atto (VCReg1)": (63.2, 39.6, 55.9, 89.1, 85.3, 65.1),
            "ConvNeXt-Atto (VCReg2)": (66.8, 48.1, 60.4, 91.1, 86.4, 66.4),
            "ConvNeXt-Atto (VCReg3)": (64.0, 40.9, 56.5, 89.4, 85.9, 65.1),
            "ConvNeXt-Atto (VCReg4)": (66.7, 48.3, 59.6, 90.6, 85.6, 66.1),
        },
        unit="accuracy of linear probes in %",
        protocol="ConvNeXt-Atto, 90 epochs on ImageNet, batches of 4096; logistic regression on "
        "frozen features. The table has no row without VCReg.",
    ),
    draw=draw_tasks,
)
