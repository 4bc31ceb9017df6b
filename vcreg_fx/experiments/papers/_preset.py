"""What an experiment does, in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..training import TrainSettings

ALPHAS = (1.28, 0.64, 0.32, 0.16)
BETAS = (0.16, 0.08, 0.04, 0.02, 0.01)
RATES = (0.016, 0.008)

IMAGENET_TRAINING = TrainSettings(
    epochs=90, batch_size=4096, learning_rate=0.016, warmup_epochs=5, label_smoothing=0.1,
    mixup=0.2, cutmix=1.0, ema_decay=0.9999, workers=16, amp="bfloat16",
)  # fmt: skip
"""torchvision's recipe for ConvNeXt, with the paper's epochs."""

PAPER_GRID: Mapping[str, Sequence[Any]] = {
    "learning_rate": RATES, "alpha": ALPHAS, "beta": BETAS,
}  # fmt: skip
"""The values that the paper searched (Appendices A and C)."""

SMALL_GRID: Mapping[str, Sequence[Any]] = {"alpha": (1.28, 0.32), "beta": (0.16, 0.02)}
"""Four corners of the paper's grid, for experiments on a CPU."""


@dataclass(frozen=True)
class Preset:
    """What an experiment does, in numbers; everything that decides on its results but the seed.

    **Arguments:**

    - `data`: a name for `load_images`.
    - `network`: a name of `NETWORKS`.
    - `training`: a `TrainSettings`.
    - `train_images`: how many training images a run draws, by its seed, equally many of each class;
      None for all.
    - `validation`: how many training images, or which share, are held out for the search.
    - `grid`: setting → values, searched on the validation images for each way to regularize.
    - `search_seeds`: runs of each point of the grid.
    - `seeds`: runs of each way to regularize that are tested.
    - `augment`: see `load_images`.
    - `size`: of the images, see `load_images`.
    - `options`: what only this experiment knows.
    """

    data: str
    network: str
    training: TrainSettings
    train_images: int | None = None
    validation: float | int = 0.1
    grid: Mapping[str, Sequence[Any]] = field(default_factory=lambda: dict(SMALL_GRID))
    search_seeds: int = 1
    seeds: int = 5
    augment: str = "none"
    size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as plain data."""
        return dataclasses.asdict(self)

    def but(self, **changes: Any) -> Preset:
        """Return the preset with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __getitem__(self, name: str) -> Any:
        """Return an option."""
        return self.options[name]
