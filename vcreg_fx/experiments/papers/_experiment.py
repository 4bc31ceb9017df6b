"""What makes an experiment: what is compared, in which numbers, and what the paper says."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from placement_rules import UserError

from ...gradient import VCRegConfig
from ..training import TrainSettings

ALPHAS = (1.28, 0.64, 0.32, 0.16)
BETAS = (0.16, 0.08, 0.04, 0.02, 0.01)
RATES = (0.016, 0.008)

IMAGENET_TRAINING = TrainSettings(
    epochs=90, batch_size=4096, learning_rate=0.016, warmup_epochs=5, label_smoothing=0.1,
    mixup=0.2, cutmix=1.0, repeats=4, ema_decay=0.99998, workers=16, amp="bfloat16",
)  # fmt: skip
"""torchvision's recipe for ConvNeXts, with what Appendix A changes: epochs, batch, rate."""

PAPER_GRID: Mapping[str, Sequence[Any]] = {
    "learning_rate": RATES, "alpha": ALPHAS, "beta": BETAS,
}  # fmt: skip
"""The values that the paper searched (Appendices A and C)."""

SMALL_GRID: Mapping[str, Sequence[Any]] = {"alpha": (1.28, 0.32), "beta": (0.16, 0.02)}
"""Four corners of the paper's grid, for experiments on a CPU."""

DEFAULTS: Mapping[str, Sequence[Any]] = {"alpha": (VCRegConfig.alpha,), "beta": (VCRegConfig.beta,)}
"""No search: the coefficients of `VCRegConfig`."""

LARGE: Mapping[str, Any] = {
    "network": "convnext-atto",
    "training": TrainSettings(
        epochs=20, batch_size=2048, learning_rate=2e-3, warmup_epochs=2, amp="bfloat16"
    ),
    "grid": DEFAULTS,
    "seeds": 3,
}
"""What the presets ``"large"`` share: 200,000 glyphs, on one GPU. Nothing is searched."""

QUICK_GRID: Mapping[str, Sequence[Any]] = {**DEFAULTS, "beta": SMALL_GRID["beta"]}
"""Two values of β, to see that everything works."""

QUICK: Mapping[str, Any] = {
    "network": "resnet8-half", "train_images": 600, "validation": 300, "grid": QUICK_GRID,
}  # fmt: skip
"""What the presets ``"quick"`` share: digits, to see that everything works."""

APPENDIX_A: Mapping[str, Any] = {
    "network": "convnext-atto", "training": IMAGENET_TRAINING, "grid": PAPER_GRID, "seeds": 3,
    "augment": "torchvision",
}  # fmt: skip
"""What the presets ``"paper"`` share that train as Appendix A says."""

SCALES = ("quick", "default", "large", "paper")
"""Minutes, tens of minutes of a CPU core, half an hour of a GPU, and days of several."""


class ReproductionError(UserError, ValueError):
    """An experiment cannot be run, drawn or written down as it was asked for."""


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

    @property
    def searched(self) -> bool:
        """Whether there is anything to choose, on images that are held out."""
        return any(len(values) > 1 for values in self.grid.values())

    def training_with(self, params: Mapping[str, Any]) -> TrainSettings:
        """Return the settings of training, with those among a trial's parameters."""
        names = {item.name for item in dataclasses.fields(TrainSettings)}
        own = {name: value for name, value in params.items() if name in names}
        return dataclasses.replace(self.training, **own)

    def __getitem__(self, name: str) -> Any:
        """Return an option."""
        return self.options[name]


def small_glyphs(data: str | None) -> int | None:
    """Return the size of glyphs for a CPU, which are the data of None; other data has its own."""
    return 24 if data in {None, "glyphs"} else None


@dataclass(frozen=True)
class Arm:
    """One way to regularize.

    **Attributes:**

    - `name`: as the table shows it.
    - `rule`: where VCReg is inserted; None for a model without.
    - `fixed`: settings that it always has.
    - `grid`: settings that are searched: name → values.
    - `versus`: the arm that it is compared with; by default the first.
    """

    name: str
    rule: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    versus: str | None = None

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every choice of settings."""
        return [
            {**self.fixed, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]


NONE = "no VCReg"
LAYER: Mapping[str, Any] = {"demean": "activations", "alpha": 0.0, "beta": 0.0}
"""Appendix A's mean removal layer alone: nothing is added to the gradient."""


def vcreg_arms(
    grid: Mapping[str, Sequence[Any]], rule: str = "blocks", name: str = "VCReg"
) -> list[Arm]:
    """Return what tells the parts of VCReg at some sites apart, beside a model without any.

    The mean removal layer of Appendix A alone; the exact gradient and Algorithm 1, each without
    that layer and behind it. The last is what the paper describes.

    What is in the grid but does not concern VCReg, such as ``learning_rate``, is searched for the
    layer alone, too.
    """
    removed = {"demean": "activations"}
    printed = {"convention": "algorithm1"}
    return [
        Arm("mean removal alone" if name == "VCReg" else f"{name}, mean removal alone", rule, LAYER,
            shared_grid(grid)),
        Arm(name, rule, {"convention": "exact"}, grid),
        Arm(f"{name}, mean removed", rule, {"convention": "exact", **removed}, grid),
        Arm(f"{name}, Algorithm 1", rule, printed, grid),
        Arm(f"{name}, Algorithm 1, mean removed", rule, {**printed, **removed}, grid),
    ]  # fmt: skip


def strength_arms(
    grid: Mapping[str, Sequence[Any]], rule: str = "blocks", name: str = "VCReg"
) -> list[Arm]:
    """Return VCReg with strengths that are found: kept at every step, or set before the first.

    Both have a `ratio` of its gradient to the task's, of which fewer values are tried than of α and
    β. ``calibrated`` is that of `vcreg_fx.calibrate`, on the first images and the first weights.
    """
    ratios = (0.03, 0.3) if any(len(values) > 1 for values in grid.values()) else (0.1,)
    fixed = {"convention": "exact"}
    return [
        Arm(f"{name}, ratio kept", rule, fixed, {**shared_grid(grid), "ratio": ratios}),
        Arm(f"{name}, calibrated", rule, fixed, {**shared_grid(grid), "calibrated": ratios}),
    ]


def shared_grid(grid: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Return what of a grid does not concern VCReg, which is searched for every arm."""
    return {name: values for name, values in grid.items() if name not in {"alpha", "beta"}}


def baseline_and_vcreg(preset: Preset, rule: str = "blocks") -> list[Arm]:
    """Return what most experiments compare: no VCReg, and the arms of VCReg at some sites."""
    none = Arm(NONE, grid=shared_grid(preset.grid))
    return [none, *vcreg_arms(preset.grid, rule), *strength_arms(preset.grid, rule)]


@dataclass(frozen=True)
class Metric:
    """A number that an experiment reports.

    **Attributes:**

    - `name`, `title`: in the records, and in tables.
    - `percent`: shown as percentages.
    - `higher`: whether larger values are those that one wants; None where it is no question of
      better and worse.
    """

    name: str
    title: str
    percent: bool = False
    higher: bool | None = True


@dataclass(frozen=True)
class Paper:
    """What the paper reports.

    **Attributes:**

    - `where`: the table or figure.
    - `columns`, `rows`: its numbers; a row has one number a column, or None for a collapse, and may
      end early.
    - `unit`: of the numbers.
    - `protocol`: how they were obtained, in short.
    """

    where: str
    columns: Sequence[str] = ()
    rows: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    unit: str = ""
    protocol: str = ""


def _no_study(*_: Any) -> Any:
    raise ReproductionError("This experiment has no presets and no arms; it runs by itself.")


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper that can be repeated.

    **Attributes:**

    - `name`, `title`, `summary`: as it is called, as it is headed, what it does.
    - `presets`: returns the `Preset` of a scale, with the data that was asked for; None is its own.
    - `scales`: those that it has, of `SCALES`.
    - `recipes`: network → what of the preset ``"paper"`` is different for it.
    - `arms`: what is compared under a preset; the first is what the others are compared with.
    - `task`: makes the task of the ablation engine of preset, data, network and folder.
    - `metrics`: what is reported, or returns it for a preset.
    - `criterion`: the metric by which the search chooses.
    - `headline`: the metrics on which conclusions are drawn.
    - `paper`: what the paper reports.
    - `draw`: draws the picture of a report.
    - `rival`: the arm that VCReg is compared with, too.
    - `own_data`: whether data is made, not loaded.
    - `run`: where the experiment is no study: does everything by itself for a folder, a scale and
      so many threads, and returns the report. Then nothing else is needed but the names.
    """

    name: str
    title: str
    summary: str
    presets: Callable[[str, str | None], Preset] = _no_study
    scales: tuple[str, ...] = ("quick", "default", "paper")
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: Callable[[Preset], list[Arm]] = baseline_and_vcreg
    task: Callable[..., Any] = _no_study
    metrics: tuple[Metric, ...] | Callable[[Preset], tuple[Metric, ...]] = ()
    criterion: str = ""
    headline: tuple[str, ...] = ()
    paper: Paper = Paper("")
    draw: Callable[[dict[str, Any], Path], None] = _no_study
    rival: str | None = None
    own_data: bool = False
    run: Callable[[Path, str, int | None], dict[str, Any]] | None = None

    def measured(self, preset: Preset) -> tuple[Metric, ...]:
        """Return what is reported under a preset."""
        return self.metrics(preset) if callable(self.metrics) else self.metrics
