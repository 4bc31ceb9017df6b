"""The main job: a ConvNeXt-Atto on scikit-learn's digits, with VCReg and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .._config import VCRegConfig
from ..surgery import Plan, plan
from ._digits import GROUPS, Split, load_digits
from ._gradient_check import SiteCheck, check_gradients
from ._measure import Measurements, measure_classifier
from ._observer import Observer
from ._settings import DemoSettings
from ._train import train


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found.

    **Attributes:**

    - `settings`: what was asked for.
    - `plan`: where VCReg was inserted.
    - `checks`: the comparison of gradients, one a site.
    - `plain`, `vcreg`: the measurements of the model trained without and with VCReg.
    - `seconds`: how long all of it took.
    """

    settings: DemoSettings
    plan: Plan
    checks: list[SiteCheck]
    plain: Measurements
    vcreg: Measurements
    seconds: float

    @property
    def largest_error(self) -> float:
        """The largest relative error of a site's gradient in float32."""
        return max(check.float32 for check in self.checks)


def run_demo(
    folder: str | Path,
    settings: DemoSettings | None = None,
    observer: Observer | None = None,
) -> DemoResult:
    """Train a small model twice, measure both, and write a report with pictures.

    Both models start from the same weights and see the same images in the same order.

    **Arguments:**

    - `folder`: where ``report.md``, ``report.json``, ``spectra.png`` and ``model.png`` go; made if
      it does not exist.
    - `settings`: by default those of `DemoSettings`.
    - `observer`: is told of every step.

    **Raises:** `PlacementError` if the rule does not fit; `OSError` if the folder cannot be
    written to, before anything is trained.
    """
    from ._report import write_report

    settings, observer = settings or DemoSettings(), observer or Observer()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _threads(settings.threads):
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
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: nn.Module = timm.create_model(
            "convnext_atto", pretrained=False, in_chans=1, num_classes=len(GROUPS)
        )
    return model


def _train_and_measure(
    model: nn.Module, training: Split, test: Split, settings: DemoSettings, observer: Observer
) -> Measurements:
    began = time.perf_counter()
    loss = train(
        model,
        training.images,
        training.groups,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        on_step=observer.advanced,
    )
    return measure_classifier(model, training, test, loss, time.perf_counter() - began)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
