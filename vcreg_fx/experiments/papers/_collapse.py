"""Neural collapse and compression over training: CDNV, NCC, MI (VCReg's table 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from ...ablation import Trial
from ...evaluation import cdnv, mutual_information, nearest_center_accuracy
from ..images import ImageSet, balanced_indices
from ..training import TrainSettings
from ._experiment import (
    APPENDIX_A,
    LARGE,
    QUICK,
    SCALES,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
)
from ._image_task import ImageTask, Roles
from ._pictures import draw_curves
from ._study import VALIDATION

_NAMES = ("cdnv", "ncc", "mi")


class CollapseTask(ImageTask):
    """Trains a classifier, and measures its features after some epochs."""

    def check(self) -> None:
        """Refuse epochs that are not trained; the last is what the table shows."""
        training, asked = self.preset.training, self.preset["epochs"]
        last = 1 if training.steps else training.epochs  # so many steps are one epoch
        known = isinstance(asked, list | tuple) and all(
            epoch in range(1, last + 1) for epoch in asked
        )
        if not known or last not in asked:
            raise ReproductionError(
                f"epochs={asked!r} must be a list of epochs from 1 to {last}, and {last}, the last "
                f"that is trained, among them, such as [1, {last}]."
            )

    def on_epoch(
        self, model: nn.Module, epoch: int, roles: Roles, trial: Trial
    ) -> Mapping[str, float] | None:
        """Return the three measurements, after the epochs that the preset names."""
        if trial["split"] == VALIDATION or epoch not in self.preset["epochs"]:
            return None
        seen = roles.train.subset(
            balanced_indices(roles.train.labels, self.preset["images"], trial.seed)
        )
        known, labels = self.features(model, seen.pairs)
        fresh = roles.measure.subset(
            balanced_indices(roles.measure.labels, self.preset["information_images"], 0)
        )
        new, _ = self.features(model, fresh.pairs)
        information = mutual_information(
            _pixels(fresh), new, steps=self.preset["steps"], seed=trial.seed
        )
        return {
            "cdnv": cdnv(known, labels),
            "ncc": nearest_center_accuracy(known, labels, known, labels),
            "mi": information / math.log(2),
        }

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return the accuracy, and what was measured after each epoch; the last by its own name."""
        found = {"accuracy": self.accuracy(model, roles.measure)}
        for numbers in self.history:
            for name in _NAMES:
                if name in numbers:
                    found[f"{name}_{numbers['epoch']:.0f}"] = numbers[name]
                    found[name] = numbers[name]
        return found


def _pixels(images: ImageSet) -> Tensor:
    """Return all images as one tensor."""
    import torch
    from torch.utils.data import TensorDataset

    if isinstance(images.pairs, TensorDataset):
        return images.pairs.tensors[0]
    return torch.stack([images.pairs[i][0] for i in range(len(images))])


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        options = {"epochs": (1, 10, 30, 60, 90), "images": 50_000, "information_images": 10_000,
                   "steps": 20_000}  # fmt: skip
        return Preset(data or "imagenet", **APPENDIX_A, options=options)
    if scale == "large":
        options = {"epochs": (1, 5, 20), "images": 20_000, "information_images": 10_000,
                   "steps": 500}  # fmt: skip
        return Preset(data or "glyphs-200k", **LARGE, options=options)
    if scale == "quick":
        options = {"epochs": (1, 4), "images": 500, "information_images": 500, "steps": 30}
        training = TrainSettings(epochs=4, batch_size=64)
        return Preset(data or "digits", **QUICK, training=training, seeds=2, options=options)
    digits = data == "digits"
    return Preset(
        data or "fashion-mnist",
        "resnet8-half",
        TrainSettings(epochs=30 if digits else 12, batch_size=64),
        train_images=900 if digits else 1_000,
        validation=290 if digits else 5_000,
        options={
            "epochs": (1, 6, 30) if digits else (1, 4, 12),
            "images": 900 if digits else 1_000,
            "information_images": 590 if digits else 1_000,
            "steps": 300,
        },
    )


COLLAPSE = Experiment(
    name="collapse",
    title="Neural collapse and compression",
    summary="CDNV, NCC and mutual information over training",
    presets=presets,
    scales=SCALES,
    task=CollapseTask,
    metrics=(
        Metric("cdnv", "CDNV"),
        Metric("ncc", "NCC", higher=False),
        Metric("mi", "MI (bits)"),
        Metric("accuracy", "accuracy", percent=True),
    ),
    criterion="accuracy",
    headline=("cdnv", "ncc", "mi", "accuracy"),
    paper=Paper(
        where="table 6",
        columns=("CDNV", "NCC", "MI"),
        rows={"ConvNeXt": (0.28, 0.99, 2.8), "ConvNeXt (VCReg)": (0.56, 0.81, 4.6)},
        protocol="ConvNeXt on ImageNet. The caption calls higher values of each better, and the "
        "table shows a lower NCC for VCReg; less collapse is a higher CDNV, a lower NCC and a "
        "higher MI.",
    ),
    draw=lambda report, path: draw_curves(report, path, _NAMES),
)
