"""Where VCReg acts: the four placements of VCReg's table 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...ablation import Trial
from ...evaluation import ProbeResult, extract_features, logistic_probe
from ..images import ImageSet, load_images, split_indices
from ..images._datasets import DOWNSTREAM, Downstream, downstream
from ..training import TrainSettings
from ._experiment import (
    DEFAULTS,
    IMAGENET_TRAINING,
    PAPER_GRID,
    SMALL_GRID,
    Arm,
    Experiment,
    Metric,
    Paper,
    Preset,
    baseline_and_vcreg,
    vcreg_arms,
)
from ._image_task import ImageTask, Roles
from ._pictures import draw_scatter
from ._study import VALIDATION

RULES = ("VCReg1", "VCReg2", "VCReg3", "VCReg4")
_STRENGTHS = (0.001, 0.1, 10.0, 1000.0)
_HELD_OUT = 0.2  # of another data set's training images, in the search


class PlacementTask(ImageTask):
    """Trains on some classes; linear probes tell what the features are worth on other tasks."""

    @property
    def seen(self) -> list[int]:
        """The classes that the network is trained on."""
        count: int | None = self.preset["seen"]
        return list(range(len(self.data.classes)))[:count]

    @property
    def unseen(self) -> list[int]:
        """The others."""
        return list(range(len(self.seen), len(self.data.classes)))

    @property
    def outputs(self) -> int:
        """The number of classes that the network is trained on."""
        return len(self.seen)

    def labelled(self, images: ImageSet) -> ImageSet:
        """Return the images of the classes that the network is trained on."""
        if len(self.seen) == len(self.data.classes):
            return images
        return images.of_classes(self.seen)

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return the accuracies of the downstream probes, their mean, and the network's own."""
        found = {
            name: self._probe(model, name, roles, trial).accuracy for name in self.preset["probes"]
        }
        return {
            **found,
            "mean": sum(found.values()) / len(found),
            "own": self.accuracy(model, roles.measure),
        }

    def _probe(self, model: nn.Module, name: str, roles: Roles, trial: Trial) -> ProbeResult:
        """Train a linear probe on one of the downstream tasks, and test it.

        The search measures on a fifth of another data set's training images, and does not touch its
        test images. At the end, its validation images choose λ, and train the probe then, too.
        """
        validation: float | tuple[Tensor, Tensor] = 0.2
        if name in {"unseen", "all"}:
            known, new = (
                self.features(model, part.of_classes(self.unseen) if name == "unseen" else part)
                for part in (roles.train, roles.measure)
            )
        else:
            data = self._elsewhere(name)
            known = self._features_of(model, data.train)
            if data.validation is not None:
                validation = self._features_of(model, data.validation)
            if trial["split"] == VALIDATION:
                if isinstance(validation, tuple):
                    known = (
                        torch.cat([known[0], validation[0]]),
                        torch.cat([known[1], validation[1]]),
                    )
                validation = _HELD_OUT
                parts = split_indices(known[1], _HELD_OUT)
                known, new = ((known[0][part], known[1][part]) for part in parts)
            else:
                new = self._features_of(model, data.test)
        return logistic_probe(
            *known, *new, validation=validation, strengths=self.preset["strengths"], seed=trial.seed
        )

    def _elsewhere(self, name: str) -> Downstream:
        if name == "digits":
            other = load_images("digits")
            return Downstream(other.train.pairs, other.test.pairs, None)
        return downstream(name, self.data.root)

    def _features_of(self, model: nn.Module, data: Dataset[Any]) -> tuple[Tensor, Tensor]:
        loader = DataLoader(data, batch_size=256, num_workers=self.preset.training.workers)
        found = extract_features(model, loader)
        if found.labels is None:
            raise ValueError("A probe needs labels.")
        return found.only, found.labels


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        from ...evaluation import STRENGTHS

        return Preset(
            data or "imagenet",
            "convnext-atto",
            IMAGENET_TRAINING,
            grid=PAPER_GRID,
            seeds=3,
            augment="torchvision",
            options={"seen": None, "probes": tuple(DOWNSTREAM), "strengths": STRENGTHS},
        )  # fmt: skip
    if scale == "quick":
        return Preset(
            data or "digits", "convnext-mini", TrainSettings(epochs=3, batch_size=64),
            train_images=600, validation=300, seeds=2, grid=DEFAULTS,
            options={"seen": 6, "probes": ("unseen", "all"), "strengths": (0.01, 1.0)},
        )  # fmt: skip
    digits = data == "digits"
    return Preset(
        data or "fashion-mnist",
        "convnext-mini",
        TrainSettings(epochs=30 if digits else 6, batch_size=64),
        train_images=900 if digits else 3_000,
        validation=290 if digits else 5_000,
        grid={**DEFAULTS, "alpha": SMALL_GRID["alpha"]},
        size=32,
        options={
            "seen": 6,
            "probes": ("unseen", "all") if digits else ("unseen", "all", "digits"),
            "strengths": _STRENGTHS,
        },
    )


def arms(preset: Preset) -> list[Arm]:
    """Return what is compared: no VCReg, and the arms of VCReg at each placement."""
    none, *_ = baseline_and_vcreg(preset)
    return [none, *(arm for rule in RULES for arm in vcreg_arms(preset.grid, rule, rule))]


def _draw(report: dict[str, Any], path: Path) -> None:
    names = [
        m["name"] for m in report["metrics"] if m["name"] in report["preset"]["options"]["probes"]
    ]
    draw_scatter(report, path, names)


PLACEMENT = Experiment(
    name="placement",
    title="Where VCReg acts",
    summary="the four placements and none, several downstream probes",
    presets=presets,
    arms=arms,
    task=PlacementTask,
    metrics=(
        Metric("mean", "mean of probes", percent=True),
        Metric("unseen", "unseen classes", percent=True),
        Metric("all", "all classes", percent=True),
        Metric("digits", "digits", percent=True),
        *(Metric(name, name, percent=True) for name in DOWNSTREAM),
        Metric("own", "own classes", percent=True),
    ),
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
    draw=_draw,
)
