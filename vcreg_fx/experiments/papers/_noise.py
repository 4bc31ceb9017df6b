"""Robustness to noise: fine-tune a trained network on noisy images (VCReg's section 5.3)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ...ablation import Trial
from ..images import balanced_indices, split_indices
from ..images._downstream import load_downstream
from ..training import TrainSettings, accuracy, fit, predict
from ..video import CLIPS
from ._experiment import (
    DEFAULTS,
    SMALL_GRID,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    baseline_and_vcreg,
    small_glyphs,
)
from ._image_task import ImageTask, calibrate_as, with_new_head
from ._pictures import draw_curves
from ._study import VALIDATION
from ._video import NOISE_RECIPES, SIGMAS, NoisyVideoTask, noise_presets

_HELD_OUT = 0.2  # of the task's training images, in the search


class NoiseTask(ImageTask):
    """Fine-tunes one trained network on noisy images, for each strength of the noise.

    The noise is Gaussian and belongs to an image: it is the same whenever that is seen. Its unit is
    the standard deviation of all pixels of the task's training images, as if they had been
    standardized; the paper does not say which it is.

    Options of the preset:

    - `pretraining`: settings of `TrainSettings` for the network that all trials begin with.
    - `task`: the images that it is fine-tuned on, a name for `load_downstream`.
    - `images`: the most of them.
    - `sigmas`: the strengths of the noise.
    """

    def check(self) -> None:
        """Look for the task's images before anything is trained."""
        self._parts  # noqa: B018 - to load them

    def others(self) -> dict[str, Dataset[Any]]:
        """Return the task's images."""
        return dict(zip(("images of the task", "its test images"), self._parts, strict=True))

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Fine-tune a copy for each strength."""
        if self.announce is not None:
            self.announce(trial)
        begun = self._pretrained()
        searching = trial["split"] == VALIDATION
        settings = self.preset.training_with(trial.params)
        self.history, self._tuned = [], {}
        for sigma in self.preset["sigmas"]:
            tuned = with_new_head(model, self._classes, self.data.shape, trial.seed, begun)
            images = self._images(sigma, searching)[0]
            calibrate_as(trial, tuned, images.tensors[0], images.tensors[1])
            log = self.log(f"{trial.id}-{sigma:g}")
            self.history = fit(
                tuned, images, settings, seed=trial.seed, classes=self._classes, log=log
            )
            self._tuned[sigma] = tuned

    def evaluate(self, model: nn.Module, trial: Trial) -> dict[str, float]:
        """Return the accuracy at each strength, and their mean."""
        searching = trial["split"] == VALIDATION
        found = {}
        for sigma, tuned in self._tuned.items():
            images = self._images(sigma, searching)[1]
            found[f"accuracy_{sigma:g}"] = accuracy(predict(tuned, images), images.tensors[1])
        mean = sum(found.values()) / len(found)
        return {**found, "mean": mean, "loss": self.history[-1]["loss"]}

    @cached_property
    def _parts(self) -> tuple[Dataset[Any], Dataset[Any]]:
        found = load_downstream(
            self.preset["task"], self.data.root, self.data.shape, self.preset["images"]
        )
        self._classes = found.classes
        return found.train, found.test

    def _images(self, sigma: float, searching: bool) -> tuple[TensorDataset, TensorDataset]:
        """Return noisy images to train on and to measure on; the search takes no test images."""
        images, labels = _in_memory(self._parts[0])
        scale = sigma * float(images.std())
        noisy = TensorDataset(_noisy(images, scale, 0), labels)
        if not searching:
            images, labels = _in_memory(self._parts[1])
            return noisy, TensorDataset(_noisy(images, scale, 1), labels)
        train, measure = (TensorDataset(*noisy[part]) for part in split_indices(labels, _HELD_OUT))
        return train, measure

    def _pretrained(self) -> dict[str, Tensor]:
        """Return the weights that all trials begin with; the first trial trains them."""

        def train() -> dict[str, Tensor]:
            model = self.factory(self.data.shape, self.outputs)
            images = self.data.train
            if (most := self.preset.train_images) is not None:
                images = images.subset(balanced_indices(images.labels, most, 0))
            fit(
                model,
                images.training,
                TrainSettings(**self.preset["pretraining"]),
                classes=self.outputs,
                checkpoint=self.checkpoint("pretraining"),
                log=self.log("pretraining"),
            )
            return model.state_dict()

        return self.kept("pretrained", train)


def _in_memory(pairs: Dataset[Any]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(pairs[i] for i in range(len(pairs))), strict=True)  # type: ignore[arg-type]
    return torch.stack(images), torch.tensor(labels)


def _noisy(images: Tensor, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return images + scale * torch.randn(images.shape, generator=generator)


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale; the paper's is one of videos, as is that of such data."""
    if scale == "paper" or data in CLIPS:
        return noise_presets(scale, data)
    pretraining = {"epochs": 4, "batch_size": 128, "learning_rate": 4e-3}
    options = {"pretraining": pretraining, "task": "digits", "images": None, "sigmas": SIGMAS}
    if scale == "quick":
        pretraining["epochs"] = 2
        return Preset(
            data or "digits", "resnet8-half", TrainSettings(epochs=2, batch_size=32),
            train_images=600, seeds=2, grid=DEFAULTS, options={**options, "images": 300},
        )  # fmt: skip
    return Preset(
        data or "glyphs",
        "resnet14-half",
        TrainSettings(epochs=4, batch_size=32, learning_rate=1e-3),
        train_images=1_000 if data == "digits" else 10_000,
        grid=SMALL_GRID,
        size=small_glyphs(data),
        options={**options, "images": 600},
    )


def metrics(preset: Preset) -> tuple[Metric, ...]:
    """Return what is reported: the accuracy with each noise."""
    return (
        Metric("mean", "mean over σ", percent=True),
        *(Metric(f"accuracy_{s:g}", f"σ = {s:g}", percent=True) for s in preset["sigmas"]),
    )


def _task(preset: Preset, *arguments: Any) -> ImageTask:
    sigmas = preset["sigmas"]
    known = isinstance(sigmas, list | tuple) and len(sigmas) > 0
    known = known and all(isinstance(sigma, int | float) and sigma >= 0 for sigma in sigmas)
    if not known or len({f"{sigma:g}" for sigma in sigmas}) < len(sigmas):
        raise ReproductionError(
            f"sigmas={sigmas!r} must be a list of different numbers from 0, such as [0.5, 1]."
        )
    kind = NoisyVideoTask if preset.data in CLIPS else NoiseTask
    return kind(preset, *arguments)


NOISE = Experiment(
    name="noise",
    title="Robustness to noise",
    summary="fine-tune a trained network on noisy images, or videos",
    presets=presets,
    recipes=NOISE_RECIPES,
    arms=lambda preset: baseline_and_vcreg(preset, "head"),
    task=_task,
    metrics=metrics,
    criterion="mean",
    headline=("mean",),
    paper=Paper(
        where="figures 3 and 4",
        protocol="Curves only: VideoMAE and VideoMAEv2, small and base, fine-tuned on HMDB51 with "
        "Gaussian noise, σ ∈ {1, 1.5, 2} of a unit that is not named, VCReg at the input of the "
        "head, α ∈ {1, 3, 5} and β ∈ {0.1, 0.3, 0.5}. With VCReg every curve lies higher.",
    ),
    draw=lambda report, path: draw_curves(report, path, ["accuracy"], "σ of the noise"),
)
