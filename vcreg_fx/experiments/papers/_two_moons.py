"""Gradient starvation on two moons with a wide gap (VCReg's figures 2 and 5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...ablation import Trial
from ...functional import spectral_decoupling_loss
from ..training import TrainSettings, fit
from ._arm import Arm
from ._boundary import FIELD, draw_boundaries, field_of, margin_of
from ._errors import ReproductionError
from ._experiment import Experiment, Metric, Paper
from ._moons import ThreeLayers, largest_margin, moons
from ._networks import Factory
from ._preset import Preset

_RULE = "modules('hidden1') | modules('hidden2')"
_ROWS = 100_000  # keeps the seeds of test points apart from those of training points


class TwoMoonsTask:
    """Trains a network of three layers on two moons, and measures its decision boundary."""

    example = (torch.zeros(2, 2),)

    def __init__(
        self,
        preset: Preset,
        data: None,
        factory: Factory | None,
        folder: Path,
        tensorboard: bool = False,
    ) -> None:
        self.preset, self.folder, self._tensorboard = preset, folder, tensorboard

    def build(self) -> nn.Module:
        """Return the network."""
        return ThreeLayers(self.preset["width"])

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Train it on points that the seed draws, with the regularization of the trial."""
        if not isinstance(model, ThreeLayers):
            raise ReproductionError("two-moons has a network of its own, ThreeLayers.")
        settings, known = self.preset.training, trial.params
        model.regularize(known.get("dropout", 0.0), bool(known.get("batch_norm", False)))
        if "weight_decay" in known:
            settings = dataclasses.replace(settings, weight_decay=known["weight_decay"])
        decoupling = float(known.get("decoupling", 0.0))

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            found = nn.functional.cross_entropy(logits, labels)
            return found + spectral_decoupling_loss(logits, decoupling) if decoupling else found

        options = self.preset.options
        points = moons(options["points"], options["noise"], options["gap"], trial.seed)
        self.history = fit(
            model,
            torch.utils.data.TensorDataset(*points),
            settings,
            loss=loss,
            seed=trial.seed,
            checkpoint=self.folder / "checkpoints" / f"{trial.id}.pt",
            log=self.folder / "logs" / trial.id if self._tensorboard else None,
        )

    def evaluate(self, model: nn.Module, trial: Trial) -> dict[str, float]:
        """Return the margin, and accuracies on new points; keep the logits on a field."""
        options = self.preset.options
        field = field_of(model.eval())
        path = self.folder / FIELD / f"{trial.id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, field.numpy().astype(np.float32))
        ideal, truth = moons(400, 0.0, options["gap"], 0)
        new = moons(2000, options["noise"], options["gap"], _ROWS + trial.seed)
        closed = moons(2000, 0.0, 0.0, 0)
        return {
            "margin": margin_of(model, field, ideal, truth) / largest_margin(options["gap"]),
            "closed": _accuracy(model, *closed),
            "accuracy": _accuracy(model, *new),
            "loss": self.history[-1]["loss"],
        }


def _accuracy(model: nn.Module, points: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(points).argmax(dim=1) == labels).double().mean())


def presets(scale: str, data: str | None) -> Preset:  # noqa: ARG001 - as all presets
    """Return the preset of a scale. The paper names no settings, so ``"paper"`` is the default."""
    quick = scale == "quick"
    return Preset(
        "two moons",
        "three-layers",
        TrainSettings(
            epochs=100 if quick else 500,
            batch_size=300,
            learning_rate=0.01,
            weight_decay=0.0,
            norm_weight_decay=None,
            warmup_epochs=0,
        ),
        grid={"alpha": (0.64,), "beta": (0.08,)}
        if quick
        else {"alpha": (1.28, 0.64, 0.32, 0.16), "beta": (0.16, 0.04, 0.01)},
        search_seeds=1,
        seeds=3 if quick else 10,
        options={"points": 300, "noise": 0.05, "gap": 0.7, "width": 100},
    )


def arms(preset: Preset) -> list[Arm]:
    """Return what the figures compare, and VCReg as it is printed."""
    printed = {"convention": "algorithm1", "demean": "activations"}
    return [
        Arm("no regularization"),
        Arm("L2", grid={"weight_decay": (0.01, 0.1, 1.0)}),
        Arm("dropout", grid={"dropout": (0.1, 0.3, 0.5)}),
        Arm("batch norm", fixed={"batch_norm": True}),
        Arm("spectral decoupling", grid={"decoupling": (0.003, 0.03, 0.3)}),
        Arm("VCReg", _RULE, {"convention": "exact"}, preset.grid),
        Arm("VCReg, demeaned", _RULE, {**printed, "convention": "exact"}, preset.grid),
        Arm("VCReg (Algorithm 1)", _RULE, printed, preset.grid),
    ]


PAPER = Paper(
    where="figures 2 and 5",
    protocol="Pictures only, no numbers: decision boundaries of a network of three layers, "
    "averaged over ten runs. The text says that VCReg separates with a larger margin than L2, "
    "dropout, batch norm and spectral decoupling. It names neither the width, nor the gap, nor the "
    "optimizer.",
)


TWO_MOONS = Experiment(
    name="two-moons",
    title="Two moons",
    summary="decision boundaries of a small network with and without regularization",
    presets=presets,
    arms=arms,
    task=TwoMoonsTask,
    metrics=(
        Metric("margin", "margin, share of the largest possible", percent=True),
        Metric("closed", "accuracy with the gap closed", percent=True),
        Metric("accuracy", "accuracy", percent=True),
    ),
    criterion="margin",
    headline=("margin", "closed"),
    paper=PAPER,
    draw=draw_boundaries,
    rival="spectral decoupling",
    own_data=True,
)
