"""Decision boundaries in the plane: where they are, how far away points are, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._errors import ReproductionError
from ._moons import moons
from ._numbers import summary_of

FIELD = "fields"  # the folder of what every run says all over the plane
_X, _Y, _SIDE = (-2.0, 3.0), (-1.75, 2.25), 201


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
