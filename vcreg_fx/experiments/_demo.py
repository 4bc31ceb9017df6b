"""The main job: a ConvNeXt-Atto on scikit-learn's digits, with VCReg and without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn
from torch.utils.data import TensorDataset

from .._shared.keeping import seeded, using_threads
from ..evaluation import (
    covariance_spectrum,
    effective_rank,
    head_features,
    linear_probe,
    mean_correlation,
    share_below,
)
from ..gradient import VCRegConfig
from ..surgery import Plan, plan
from ._demo_report import DemoResult, DemoSettings, Measurements, write_report
from ._digits_ablation import TRAINING, build
from ._gradient_check import SiteCheck, check_gradients
from .images._digits import Split, load_digits
from .training import accuracy, fit, predict


class Observer:
    """Is told what the demo does; this one says nothing. Override what is of interest."""

    def planned(self, plan: Plan) -> None:
        """The sites are known."""

    def started(self, task: str, steps: int) -> None:
        """A task of known length begins; the one before is over."""

    def advanced(self, loss: float | None = None) -> None:
        """One step of the current task is done."""

    def checked(self, checks: Sequence[SiteCheck]) -> None:
        """The gradients have been compared."""

    def measured(self, result: DemoResult) -> None:
        """Both models are trained and measured."""

    def written(self, files: Sequence[Path]) -> None:
        """The report lies on the disk."""


def run_demo(
    folder: str | Path,
    settings: DemoSettings | None = None,
    observer: Observer | None = None,
) -> DemoResult:
    """Train a small model twice, measure both, and write a report with pictures.

    Both models start from the same weights and see the same images in the same order.

    **Arguments:**

    - `folder`: where ``report.html``, ``report.md``, ``report.json``, ``spectra.png`` and
      ``model.png`` go; made if it does not exist.
    - `settings`: by default those of `DemoSettings`.
    - `observer`: is told of every step.

    **Raises:** `PlacementError` if the rule does not fit; `OSError` if the folder cannot be
    written to, before anything is trained.
    """
    settings, observer = settings or DemoSettings(), observer or Observer()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with using_threads(settings.threads):
        result = _run(settings, observer)
    observer.measured(result)
    observer.written(write_report(result, folder))
    return result


def _run(settings: DemoSettings, observer: Observer) -> DemoResult:
    began = time.perf_counter()
    training, test = load_digits(settings.seed)
    config = VCRegConfig(alpha=settings.alpha, beta=settings.beta)
    planned = plan(_build(settings), settings.rule, example_inputs=(training.images[:2],))
    observer.planned(planned)

    observer.started("comparing gradients", 2 * len(planned.sites))
    batch = training.images[: settings.check_images]
    checks = check_gradients(planned, batch, config, observer.advanced)
    observer.checked(checks)

    observer.started("training without VCReg", settings.steps)
    plain = _train_and_measure(_build(settings), training, test, settings, observer)
    observer.started("training with VCReg", settings.steps)
    regularized = planned.apply(config)
    vcreg = _train_and_measure(regularized, training, test, settings, observer)
    return DemoResult(settings, planned, checks, plain, vcreg, time.perf_counter() - began)


def _build(settings: DemoSettings) -> nn.Module:
    """Return the model with the weights of the seed; torch's random state is left alone."""
    with seeded(settings.seed):
        return build()


def _train_and_measure(
    model: nn.Module, training: Split, test: Split, settings: DemoSettings, observer: Observer
) -> Measurements:
    began = time.perf_counter()
    losses: list[float] = []

    def stepped(loss: float) -> None:
        losses.append(loss)
        observer.advanced(loss)

    names = ("steps", "batch_size", "learning_rate", "weight_decay")
    how = replace(TRAINING, **{name: getattr(settings, name) for name in names})
    data = TensorDataset(training.images, training.groups)
    fit(model, data, how, seed=settings.seed, on_step=stepped, progress=False)
    seconds = time.perf_counter() - began
    predicted = predict(model, TensorDataset(test.images, test.groups))
    features = head_features(model, test.images)
    known = head_features(model, training.images)
    probe = linear_probe(known, training.digits, features, test.digits)
    return Measurements(
        coarse_accuracy=accuracy(predicted, test.groups),
        probe_accuracy=probe.accuracy,
        low_spread=share_below(features, 1.0),
        correlation=mean_correlation(features),
        rank=effective_rank(features),
        train_loss=losses[-1],
        seconds=seconds,
        spectrum=covariance_spectrum(features),
        probe_right=probe.predictions == test.digits,
    )
