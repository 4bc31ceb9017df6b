"""Long-tail learning: few images of most classes (VCReg's table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ablation import Trial
from ..images import long_tail_counts, long_tail_indices, shot_groups, split_indices
from ..training import TrainSettings, accuracy
from ._experiment import (
    PAPER_GRID,
    QUICK,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
)
from ._image_task import ImageTask, Roles
from ._pictures import draw_scatter
from ._study import VALIDATION


class LongTailTask(ImageTask):
    """Trains on a long-tailed subset and tests on balanced images."""

    def check(self) -> None:
        """Refuse a profile that begins with more images than a class has."""
        largest, least = self.preset["largest"], int(torch.bincount(self.data.train.labels).min())
        if largest > least:
            raise ReproductionError(
                f"largest={largest} images of a class are more than the {least} that "
                f"{self.data.name} has of one. Give --set largest={least}, or fewer."
            )
        labels = self.data.train.labels
        self.counts(labels)
        if self.preset.searched:
            self.counts(labels[split_indices(labels, self.preset.validation)[0]])

    def roles(self, trial: Trial) -> Roles:
        """Return the long-tailed images to train on, and balanced ones to measure on.

        Where the search holds images out, the profile begins with as many images as are left.
        """
        pool, measure = self.data.train, self.data.test
        if trial["split"] == VALIDATION:
            kept, held = split_indices(pool.labels, self.preset.validation)
            pool, measure = pool.subset(kept), pool.subset(held)
        counts = self.counts(pool.labels)
        return Roles(pool.subset(long_tail_indices(pool.labels, counts, trial.seed)), measure)

    def counts(self, labels: Tensor) -> list[int]:
        """Return how many images of each class are trained on."""
        available = int(torch.bincount(labels).min())
        largest = min(self.preset["largest"], available)
        return long_tail_counts(len(self.data.classes), largest, self.preset["imbalance"])

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return the accuracy: of all, of many-, medium- and few-shot classes, of each class."""
        predicted = self.predictions(model, roles.measure)
        labels = roles.measure.labels
        counts = torch.bincount(roles.train.labels, minlength=len(self.data.classes)).tolist()
        found = {"accuracy": accuracy(predicted, labels)}
        for group, members in shot_groups(counts, self.preset["thresholds"]).items():
            if members:
                chosen = torch.isin(labels, torch.tensor(members))
                found[group] = accuracy(predicted[chosen], labels[chosen])
        for label in range(len(self.data.classes)):
            chosen = labels == label
            found[f"class_{label}"] = accuracy(predicted[chosen], labels[chosen])
        return found


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        data = data or "cifar100"
        hundred = data == "cifar100"
        return Preset(
            data,
            "resnet32",
            TrainSettings(
                epochs=100, batch_size=256, learning_rate=0.016, warmup_epochs=10, workers=4
            ),
            grid=PAPER_GRID,
            augment="crop",
            seeds=3,
            options={
                "largest": 500 if hundred else 5000,
                "imbalance": 100,
                "thresholds": (100, 20) if hundred else None,
            },
        )
    digits = (data or ("digits" if scale == "quick" else "")) == "digits"
    if scale == "quick":
        training = TrainSettings(epochs=6, batch_size=32)
        options = {"largest": 80, "imbalance": 20, "thresholds": None}
        how = {**QUICK, "train_images": None, "training": training, "seeds": 3}
        return Preset(data or "digits", **how, options=options)
    return Preset(
        data or "fashion-mnist",
        "resnet8-half",
        TrainSettings(epochs=40 if digits else 6, batch_size=32 if digits else 64),
        validation=290 if digits else 5_000,
        options={
            "largest": {"digits": 90, "glyphs": 100}.get(data or "", 1_000),
            "imbalance": 20 if digits else 100,
            "thresholds": None,
        },
    )


LONG_TAIL = Experiment(
    name="long-tail",
    title="Long-tail learning",
    summary="train on a long-tailed subset, test on balanced images",
    presets=presets,
    task=LongTailTask,
    metrics=(
        Metric("accuracy", "accuracy", percent=True),
        Metric("many", "many-shot", percent=True),
        Metric("medium", "medium-shot", percent=True),
        Metric("few", "few-shot", percent=True),
    ),
    criterion="accuracy",
    headline=("accuracy", "few"),
    paper=Paper(
        where="table 3",
        columns=("CIFAR10-LT", "CIFAR100-LT"),
        rows={"ResNet-32": (69.6, 37.4), "ResNet-32 (VCReg)": (71.2, 40.4)},
        unit="accuracy in %",
        protocol="ResNet-32, imbalance 100; 100 epochs, batches of 256, learning rate 0.016 or "
        "0.008 with 10 epochs of warm-up and a cosine, weight decay 0.05.",
    ),
    draw=lambda report, path: draw_scatter(report, path, ["accuracy", "many", "medium", "few"]),
)
