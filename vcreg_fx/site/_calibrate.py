"""α and β of each site from one batch, so that VCReg is as strong as it is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._errors import InsertionError
from .._shared.tables import align
from ._measure import Measurement, measure
from ._registry import live_sites


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` did; printed as a table.

    **Attributes:**

    - `ratio`: what was asked for.
    - `before`, `after`: what `vcreg_fx.measure` saw, on the same batch.
    - `coefficients`: ``{site: {"alpha": …, "beta": …}}``, as `vcreg_fx.insert` takes them.
    """

    ratio: float
    before: Measurement
    after: Measurement
    coefficients: Mapping[str, Mapping[str, float]]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table of the sites as text: its head, and a row a site."""
        rows: list[tuple[str, ...]] = [("site", "α", "β", "VCReg/task before", "after")]
        was, now = strengths(self.before), strengths(self.after)
        for name, values in self.coefficients.items():
            numbers = (values["alpha"], values["beta"], was[name], now[name])
            rows.append((name, *(f"{number:.3g}" for number in numbers)))
        return rows

    def __str__(self) -> str:
        """Return a table of the sites."""
        return align(self.cells())


def calibrate(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    ratio: float = 0.1,
    *,
    train: bool = True,
) -> Calibration:
    """Set α and β of each site so that VCReg's gradient is `ratio` times the task's there.

    Measured on one batch, as `measure` does, and without a trace but for the coefficients: both are
    multiplied by one number a site, so that they keep their proportion. Where one forward pass
    calls a site several times, the norms are over all of its calls.

    At the start of a training run gradients are not yet what they will be: calibrate on a model
    that has trained for a while, or let ``ratio=`` of `VCRegConfig` do so at every step.

    **Arguments:** as for `measure`, and

    - `ratio`: ‖∂ penalty / ∂h‖ / ‖∂ task loss / ∂h‖, from 0 (exclusive).

    **Returns:** a `Calibration`: the table before and after, and the coefficients, for `insert`.

    **Raises:** `InsertionError` if nothing was inserted, or at some site no gradient of one of the
    two arrives, so that no coefficient makes the ratio; `ValueError` for a ratio that is none.
    Nothing has been changed then.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio={ratio!r} must be a finite number > 0.")
    sites = live_sites(model)
    kept = [site.name for site in sites if site.config.ratio is not None]
    if kept:
        raise InsertionError(
            f"{', '.join(kept)}: inserted with ratio=, which finds the strength anew at every "
            "step. There is nothing to calibrate."
        )
    before = measure(model, inputs, loss, train=train)
    found = strengths(before)
    _check(found, [site.name for site in sites])
    for site in sites:
        factor = ratio / found[site.name]
        site.alpha, site.beta = factor * site.alpha, factor * site.beta
    coefficients = {site.name: {"alpha": site.alpha, "beta": site.beta} for site in sites}
    return Calibration(ratio, before, measure(model, inputs, loss, train=train), coefficients)


def strengths(measured: Measurement) -> dict[str, float]:
    """Return ‖∂ penalty / ∂h‖ / ‖∂ task loss / ∂h‖ by site, over all of its calls."""
    found = {}
    for name in dict.fromkeys(row.site for row in measured):
        calls = [row for row in measured if row.site == name]
        task = math.hypot(*(row.task for row in calls))
        penalty = math.hypot(*(row.ratio * row.task if row.task else 0.0 for row in calls))
        found[name] = penalty / task if task else math.inf
    return found


def _check(found: Mapping[str, float], names: list[str]) -> None:
    reasons = []
    for name in names:
        if name not in found:
            reasons.append(f"{name} saw no activation with a gradient (is it frozen?)")
        elif found[name] == math.inf:
            reasons.append(f"no gradient of the task arrives at {name}")
        elif found[name] == 0:
            reasons.append(f"the penalty of {name} is satisfied, or its α and β are 0")
        elif math.isnan(found[name]):
            reasons.append(f"a gradient at {name} is NaN")
    if reasons:
        raise InsertionError(
            f"No α and β make the ratio: {'; '.join(reasons)}. Choose a rule, or another batch, "
            "without these sites. Nothing was changed."
        )
