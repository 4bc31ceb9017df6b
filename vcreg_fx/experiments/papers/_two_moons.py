"""Gradient starvation on two moons with a wide gap (VCReg's figures 2 and 5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...ablation import Trial
from ...functional import spectral_decoupling_loss
from ..training import TrainSettings, fit
from ._experiment import (
    Arm,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    vcreg_arms,
)
from ._networks import Factory
from ._render import summary_of

FIELD = "fields"  # the folder of what every run says all over the plane
_X, _Y, _SIDE = (-2.0, 3.0), (-1.75, 2.25), 201


def moons(count: int, noise: float, gap: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return points, shape (n, 2), and labels 0 (upper moon) and 1, shape (n,).

    Scikit-learn's two moons, of which the upper one is moved up and the lower one down by half of
    the gap. With a gap of more than 0.5, a horizontal line separates them.
    """
    from sklearn.datasets import make_moons

    points, labels = make_moons(count, noise=noise or None, random_state=seed)
    points[:, 1] += np.where(labels == 0, gap / 2, -gap / 2)
    return torch.from_numpy(points).float(), torch.from_numpy(labels).long()


def largest_margin(gap: float) -> float:
    """Return half of the distance between the two moons without noise: no margin is larger."""
    points, labels = moons(4000, 0.0, gap, 0)
    return float(torch.cdist(points[labels == 0], points[labels == 1]).min()) / 2


class Hidden(nn.Module):
    """A hidden layer: linear, norm, ReLU, dropout; the last and the second are off at first."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, width)
        self.norm: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the representation, shape (n, width)."""
        out: Tensor = self.dropout(torch.relu(self.norm(self.linear(x))))
        return out


class ThreeLayers(nn.Module):
    """A network of three layers for points in the plane.

    **Arguments:**

    - `width`: of its two hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden1 = Hidden(2, width)
        self.hidden2 = Hidden(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, 2)."""
        logits: Tensor = self.head(self.hidden2(self.hidden1(x)))
        return logits

    def regularize(self, dropout: float, batch_norm: bool) -> None:
        """Switch on dropout and batch norm in the hidden layers."""
        for layer in (self.hidden1, self.hidden2):
            layer.dropout.p = dropout
            if batch_norm:
                layer.norm = nn.BatchNorm1d(layer.linear.out_features)


def field_of(model: nn.Module) -> Tensor:
    """Return the logit of class 1 less that of class 0 on a grid, by y and x."""
    xs, ys = torch.linspace(*_X, _SIDE), torch.linspace(*_Y, _SIDE)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    with torch.no_grad():
        logits = model(torch.stack([x.flatten(), y.flatten()], dim=1))
    field: Tensor = (logits[:, 1] - logits[:, 0]).view(_SIDE, _SIDE)
    return field


def margin_of(model: nn.Module, field: Tensor, points: Tensor, labels: Tensor) -> float:
    """Return the smallest distance of a point to the decision boundary.

    It is negative where a point lies on the wrong side; then the one farthest on the wrong side
    counts. Without any boundary in the field, all points belong to one class, and the margin is
    minus the height of the field.
    """
    from contourpy import contour_generator

    lines: Any = contour_generator(
        np.linspace(*_X, _SIDE), np.linspace(*_Y, _SIDE), field.double().numpy()
    ).lines(0.0)
    if not lines:
        return _Y[0] - _Y[1]
    boundary = torch.from_numpy(np.concatenate(lines)).float()
    distances = torch.cdist(points, boundary).amin(dim=1)
    with torch.no_grad():
        right = model(points).argmax(dim=1) == labels
    return float(torch.where(right, distances, -distances).min())


def draw_boundaries(report: dict[str, Any], path: Path) -> None:
    """Draw each arm's decision boundary, averaged over its runs, with the points of one run.

    What is averaged is the probability of the upper moon; the line is where it is one half.

    **Raises:** `ReproductionError` if a run left no field.
    """
    from matplotlib.figure import Figure

    rows, options = report["rows"], report["preset"]["options"]
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.1 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    points, labels = moons(options["points"], options["noise"], options["gap"], 0)
    for axes, row in zip(grid.flat, rows, strict=False):
        mean = np.mean(
            [_probability(path.parent / FIELD, trial) for trial in row["trials"]], axis=0
        )
        xs, ys = np.linspace(*_X, _SIDE), np.linspace(*_Y, _SIDE)
        axes.contourf(xs, ys, mean, levels=np.linspace(0, 1, 11), cmap="RdBu", alpha=0.75)
        axes.contour(xs, ys, mean, levels=[0.5], colors="black", linewidths=1.4)
        for label, color in ((0, "#1b4f72"), (1, "#922b21")):
            chosen = points[labels == label]
            axes.plot(chosen[:, 0], chosen[:, 1], ".", color=color, markersize=2)
        margin = summary_of(row, "margin").mean
        axes.set_title(f"{row['name']}\nmargin {100 * margin:.0f} %", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=90)


def _probability(folder: Path, trial: str) -> np.ndarray:
    """Return the probability of the upper moon on the field of one run."""
    path = folder / f"{trial}.npy"
    if not path.exists():
        raise ReproductionError(
            f"{path} is missing, without which the boundaries cannot be drawn. Remove the folder "
            "of this experiment to run it again."
        )
    found: np.ndarray = 1 / (1 + np.exp(np.clip(np.load(path), -60, 60)))
    return found


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
    """Return what the figures compare."""
    return [
        Arm("no regularization"),
        Arm("L2", grid={"weight_decay": (0.01, 0.1, 1.0)}),
        Arm("dropout", grid={"dropout": (0.1, 0.3, 0.5)}),
        Arm("batch norm", fixed={"batch_norm": True}),
        Arm("spectral decoupling", grid={"decoupling": (0.003, 0.03, 0.3)}),
        *vcreg_arms(preset.grid, _RULE),
    ]


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
    paper=Paper(
        where="figures 2 and 5",
        protocol="Pictures only, no numbers: decision boundaries of a network of three layers, "
        "averaged over ten runs. The text says that VCReg separates with a larger margin than L2, "
        "dropout, batch norm and spectral decoupling. It names neither the width, nor the gap, "
        "nor the optimizer.",
    ),
    draw=draw_boundaries,
    rival="spectral decoupling",
    own_data=True,
)
