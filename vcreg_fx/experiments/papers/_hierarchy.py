"""Hierarchical classification: train on superclasses, probe subclasses (VCReg's table 5)."""

from __future__ import annotations

import dataclasses

from torch import nn

from ...ablation import Trial
from ...evaluation import gradient_probe, mean_correlation
from ..images import ImageSet
from ..training import TrainSettings
from ._experiment import (
    APPENDIX_A,
    IMAGENET_TRAINING,
    LARGE,
    QUICK,
    SCALES,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    small_glyphs,
)
from ._image_task import ImageTask, Roles
from ._pictures import draw_scatter


class HierarchyTask(ImageTask):
    """Trains on superclasses; a linear probe tells what the features know of the classes."""

    def check(self) -> None:
        """Refuse data without superclasses."""
        if not self.data.groups:
            raise ReproductionError(
                f"{self.data.name} has no superclasses. For ImageNet, choose a subset that has: "
                "--classes living_9, or a class file; for your own data, name ImageData.groups."
            )

    @property
    def outputs(self) -> int:
        """The number of superclasses."""
        return len(self.data.groups)

    def labelled(self, images: ImageSet) -> ImageSet:
        """Return images with their superclasses as labels."""
        return images.relabel(self.data.group_of)

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return the accuracies of the probe on classes, and of the network on superclasses."""
        known, labels = self.features(model, roles.train.pairs)
        new, truth = self.features(model, roles.measure.pairs)
        probe = gradient_probe(known, labels, new, truth, seed=trial.seed)
        return {
            "subclass": probe.accuracy,
            "superclass": self.accuracy(model, roles.measure),
            "correlation": mean_correlation(new),
        }


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        training = dataclasses.replace(IMAGENET_TRAINING, epochs=200, workers=8, amp="none")
        return Preset(data or "cifar100", **{**APPENDIX_A, "training": training})
    if scale == "large":
        return Preset(data or "glyphs-200k", **LARGE)
    if scale == "quick":
        training = TrainSettings(epochs=4, batch_size=64)
        return Preset(data or "digits", **QUICK, training=training, seeds=3)
    images, epochs, held_out = {
        "digits": (900, 30, 290),
        "fashion-mnist": (10_000, 6, 5_000),
    }.get(data or "glyphs", (6_000, 3, 4_000))
    return Preset(
        data or "glyphs",
        "resnet14-half",
        TrainSettings(epochs=epochs, batch_size=128 if data == "fashion-mnist" else 64),
        train_images=images,
        validation=held_out,
        seeds=10,
        size=small_glyphs(data),
    )


HIERARCHY = Experiment(
    name="hierarchy",
    title="Hierarchical classification",
    summary="train on superclasses, probe subclasses",
    presets=presets,
    scales=SCALES,
    task=HierarchyTask,
    metrics=(
        Metric("subclass", "subclass probe", percent=True),
        Metric("superclass", "superclass", percent=True),
        Metric("correlation", "mean correlation", higher=False),
    ),
    criterion="subclass",
    headline=("subclass", "superclass"),
    paper=Paper(
        where="table 5",
        columns=("CIFAR100", "living 9", "mixed 10", "mixed 13", "geirhos 16", "big 12"),
        rows={
            "ConvNeXt": (60.7, 53.4, 60.3, 61.1, 60.5, 51.8),
            "ConvNeXt (VCReg)": (72.9, 62.2, 67.7, 66.0, 70.1, 61.5),
        },
        unit="accuracy of the subclass probe in %",
        protocol="ConvNeXt-Atto, 200 epochs on superclasses, batches of 4096; then a linear probe "
        "on subclasses: 100 epochs of AdamW, learning rate 0.016, cosine, batches of 256.",
    ),
    draw=lambda report, path: draw_scatter(report, path, ["subclass", "superclass"]),
)
