"""Gradient starvation on two moons with a wide gap (VCReg's figures 2 and 5).

The paper names no settings and mirrors those of gradient starvation (Pezeshki et al. 2021, figure
3), which are taken from that paper's published code. Its network has two layers; VCReg's text says
three, and so it is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..._shared.pictures import panels
from ..._shared.statistics import summary_of
from ...ablation import Trial
from ...functional import spectral_decoupling_loss
from ..training import TrainSettings, fit
from ._experiment import (
    ALPHAS,
    BETAS,
    DEFAULTS,
    Arm,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    strength_arms,
    vcreg_arms,
)
from ._image_task import calibrate_as
from ._networks import Factory

FIELD = "fields"  # the folder of what every run says all over the plane
_END, _SIDE = 2.0, 201  # of the plane in which boundaries are looked for


def moons(count: int, noise: float, gap: float | None, seed: int, angle: float = 0) -> Points:
    """Return points, shape (n, 2), and labels 0 and 1, shape (n,).

    Scikit-learn's two moons, side by side: the first with x > gap, the second with x < −gap.

    **Arguments:**

    - `gap`: half of the room between the moons, into which no point strays, whatever the noise.
      None leaves the moons as scikit-learn has them, one in the other.
    - `angle`: by which everything is turned, in degrees.
    """
    from sklearn.datasets import make_moons

    points, labels = make_moons(count, noise=noise or None, random_state=seed)
    side = 1.0 - 2.0 * labels  # where a moon belongs
    points[:, 0] -= 0.5
    if gap is None:
        points[:, 1] -= 0.25
    else:
        points[:, 1] += 0.3 * side
        points[:, 1] -= points[:, 1].mean()
        points[:, 1] = side * (np.abs(points[:, 1]) + gap)  # what has strayed is reflected
    turn = math.radians(angle)
    turned = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = points[:, ::-1] @ turned
    return torch.from_numpy(points).float(), torch.from_numpy(labels).long()


Points = tuple[Tensor, Tensor]


def largest_margin(gap: float) -> float:
    """Return half of the distance between the two moons without noise: no margin is larger."""
    points, labels = moons(4000, 0.0, gap, 0)
    return float(torch.cdist(points[labels == 0], points[labels == 1]).min()) / 2


class Hidden(nn.Module):
    """A hidden layer: linear, norm, dropout, ReLU; the norm and the dropout are off at first."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, width)
        self.norm: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the representation, shape (n, width)."""
        return torch.relu(self.dropout(self.norm(self.linear(x))))


class Layers(nn.Module):
    """A network of three layers for points in the plane, with one logit: that of label 1.

    **Arguments:**

    - `width`: of its two hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(Hidden(2, width), Hidden(width, width))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n,)."""
        logits: Tensor = self.head(self.hidden(x))
        return logits.squeeze(1)

    def change(self, layers: int, dropout: float, batch_norm: bool) -> None:
        """Take more layers; switch on dropout and batch norm in the hidden ones."""
        width = self.head.in_features
        self.hidden.extend(Hidden(width, width) for _ in range(layers - len(self.hidden) - 1))
        for layer in self.hidden:
            layer.dropout = nn.Dropout(dropout)
            if batch_norm:
                layer.norm = nn.BatchNorm1d(width)


def field_of(model: nn.Module) -> Tensor:
    """Return the logit on a grid, by y and x."""
    ticks = torch.linspace(-_END, _END, _SIDE)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    with torch.no_grad():
        logits: Tensor = model(torch.stack([x.flatten(), y.flatten()], dim=1))
    return logits.reshape(_SIDE, _SIDE)


def margin_of(model: nn.Module, field: Tensor, points: Tensor, labels: Tensor) -> float:
    """Return the smallest distance of a point to the decision boundary.

    It is negative where a point lies on the wrong side; then the one farthest on the wrong side
    counts. Without any boundary in the field, all points belong to one class, and the margin is
    minus the height of the field.
    """
    from contourpy import contour_generator

    ticks = np.linspace(-_END, _END, _SIDE)
    lines: Any = contour_generator(ticks, ticks, field.double().numpy()).lines(0.0)
    if not lines:
        return -2 * _END
    boundary = torch.from_numpy(np.concatenate(lines)).float()
    distances = torch.cdist(points, boundary).amin(dim=1)
    return float(torch.where(_right(model, points, labels), distances, -distances).min())


def _right(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(points)
    return (logits > 0) == (labels == 1)


def draw_boundaries(report: dict[str, Any], path: Path) -> None:
    """Draw each arm's logit and decision boundary, averaged over its runs, and one run's points.

    **Raises:** `ReproductionError` if a run left no field.
    """
    rows, options = report["rows"], report["preset"]["options"]
    columns = 5
    size = 2.1 * columns, 2.4 * -(-len(rows) // columns)
    figure, grid = panels(len(rows), size, columns, sharex=True, sharey=True)
    ticks = np.linspace(-_END, _END, _SIDE)
    for axes, row in zip(grid, rows, strict=True):
        axes.set_xticks([])
        axes.set_yticks([])
        if not row["trials"]:
            axes.set_title(f"{row['name']}\ndiverged", fontsize=7)
            continue
        mean = np.mean([_field(path.parent / FIELD, trial) for trial in row["trials"]], axis=0)
        limit = float(np.abs(mean).max())
        axes.contourf(
            ticks, ticks, mean, levels=np.linspace(-limit, limit, 13), cmap="RdBu", alpha=0.8
        )
        axes.contour(ticks, ticks, mean, levels=[0.0], colors="black", linewidths=1.2)
        angle = row["settings"].get("angle", 0)
        points, labels = moons(options["points"], options["noise"], options["gap"], 0, angle)
        for label, color in ((0, "#922b21"), (1, "#1b4f72")):
            chosen = points[labels == label]
            axes.plot(chosen[:, 0], chosen[:, 1], ".", color=color, markersize=2)
        margin = summary_of(row["by_seed"], "margin").mean
        axes.set_title(f"{row['name']}\nmargin {100 * margin:.0f} %", fontsize=7)
    figure.savefig(path, dpi=80)


def _field(folder: Path, trial: str) -> np.ndarray:
    """Return the logit of one run on the grid."""
    path = folder / f"{trial}.npy"
    if not path.exists():
        raise ReproductionError(
            f"{path} is missing, without which the boundaries cannot be drawn. Remove the folder "
            "of this experiment to run it again."
        )
    found: np.ndarray = np.load(path)
    return found


_RULE = "modules('hidden.*')"
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
        return Layers(self.preset["width"])

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Train it on points that the seed draws, with the regularization of the trial."""
        if not isinstance(model, Layers):
            raise ReproductionError("two-moons has a network of its own, Layers.")
        known = trial.params
        model.change(
            int(known.get("layers", 3)),
            float(known.get("dropout", 0.0)),
            bool(known.get("batch_norm", False)),
        )
        decoupling = float(known.get("decoupling", 0.0))

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            found = softplus(logits * (1 - 2 * labels)).mean()
            return found + spectral_decoupling_loss(logits, decoupling) if decoupling else found

        points = self._moons(trial, trial.seed)
        calibrate_as(trial, model, *points, loss)
        self.history = fit(
            model,
            torch.utils.data.TensorDataset(*points),
            self.preset.training_with(trial.params),
            loss=loss,
            seed=trial.seed,
            log=self.folder / "logs" / trial.id if self._tensorboard else None,
        )

    def _moons(self, trial: Trial, seed: int, **changes: Any) -> Points:
        names = ("noise", "gap")
        options = {"count": self.preset["points"], **{n: self.preset[n] for n in names}, **changes}
        return moons(seed=seed, angle=float(trial.params.get("angle", 0)), **options)

    def evaluate(self, model: nn.Module, trial: Trial) -> dict[str, float]:
        """Return the margin, and accuracies on new points; keep the logits on a grid.

        The margin is measured on the moons without noise, which are the same for the search: they
        are what points are drawn around, and not points that a search could prefer.
        """
        field = field_of(model.eval().cpu())
        path = self.folder / FIELD / f"{trial.id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, field.numpy().astype(np.float32))
        ideal = self._moons(trial, 0, count=400, noise=0.0)
        new = self._moons(trial, _ROWS + trial.seed, count=2000)
        closed = self._moons(trial, 0, count=2000, noise=0.0, gap=None)
        return {
            "margin": margin_of(model, field, *ideal) / largest_margin(self.preset["gap"]),
            "closed": float(_right(model, *closed).double().mean()),
            "accuracy": float(_right(model, *new).double().mean()),
            "loss": self.history[-1]["loss"],
        }


def presets(scale: str, data: str | None) -> Preset:  # noqa: ARG001 - as all presets
    """Return the preset of a scale.

    Their numbers are those of the code that the paper mirrors; default and paper differ in the
    search and in the number of seeds.
    """
    grids: dict[str, Mapping[str, Sequence[Any]]] = {
        "quick": DEFAULTS,
        "default": {"alpha": (ALPHAS[0], ALPHAS[-1]), "beta": (BETAS[0], BETAS[-1])},
        "paper": {"alpha": ALPHAS, "beta": BETAS},
    }
    quick = scale == "quick"
    return Preset(
        "two moons",
        "layers",
        TrainSettings(
            steps=100 if quick else 1000,
            batch_size=300,
            optimizer="sgd",
            schedule="constant",
            learning_rate=0.01,
            weight_decay=0.0,
            norm_weight_decay=None,
        ),
        grid=grids[scale],
        seeds={"quick": 3, "default": 5, "paper": 10}[scale],
        options={"points": 300, "noise": 0.1, "gap": 0.1, "width": 50 if quick else 500},
    )


def arms(preset: Preset) -> list[Arm]:
    """Return the ten panels of gradient starvation's figure 3, and VCReg."""
    steps = preset.training.steps or 0
    return [
        Arm("no regularization"),
        Arm("weight decay", fixed={"weight_decay": 0.01}),
        Arm("ten times longer", fixed={"steps": 10 * steps}),
        Arm("Adam, 0.0001", fixed={"optimizer": "adam", "learning_rate": 1e-4}),
        Arm("Adam, 0.003", fixed={"optimizer": "adam", "learning_rate": 3e-3}),
        Arm("turned by 45°", fixed={"angle": 45}),
        Arm("dropout", fixed={"dropout": 0.7}),
        Arm("batch norm", fixed={"batch_norm": True}),
        Arm("five layers", fixed={"layers": 5}),
        Arm("spectral decoupling", fixed={"decoupling": 0.006}),  # 0.003 ŷ², there without the ½
        *vcreg_arms(preset.grid, _RULE),
        *strength_arms(preset.grid, _RULE),
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
        "dropout, batch norm and spectral decoupling. It names no settings, and points to gradient "
        "starvation, whose code has 300 points with noise 0.1, a network of two layers and 500 "
        "units, and 1,000 epochs of full-batch SGD, learning rate 0.01, momentum 0.9.",
    ),
    draw=draw_boundaries,
    rival="spectral decoupling",
    own_data=True,
)
