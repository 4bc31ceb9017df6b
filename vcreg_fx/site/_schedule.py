"""Warm-up and decay of α and β over the steps of training."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from .._errors import InsertionError
from ..gradient import check_coefficient
from ._registry import live_sites


class CoefficientSchedule:
    """Multiplies α and β of every site by a factor that rises at the start and falls at the end.

    Like a scheduler of the learning rate: make it before training, and call `step` after each step
    of the optimizer. The factor is ``t / warmup`` at step t of the warm-up (0 at the first), then
    1, and in the last ``decay`` of ``total`` steps it falls to ``final`` along half a cosine.

    **Arguments:**

    - `model`: a model into which VCReg was inserted. Its coefficients now are those of factor 1.
    - `warmup`: the number of steps of the warm-up.
    - `decay`: the number of steps of the decay; needs `total`.
    - `total`: the number of steps of training.
    - `final`: the factor after the last step.

    **Attributes:** `factor`, now; `peaks`, ``{site: (α, β)}`` at factor 1, which can be changed;
    `last_step`, the number of steps so far.

    **Raises:** `InsertionError` if nothing was inserted; `ValueError` for lengths that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        warmup: int = 0,
        decay: int = 0,
        total: int | None = None,
        final: float = 0.0,
    ) -> None:
        check_schedule(warmup, decay, final)
        if decay and total is None:
            raise ValueError(f"decay={decay} counts from the end: give total=, all steps.")
        if total is not None and warmup + decay > total:
            raise ValueError(f"warmup={warmup} and decay={decay} do not fit into total={total}.")
        if warmup != int(warmup) or decay != int(decay):
            raise ValueError(f"warmup={warmup} and decay={decay} must be whole numbers of steps.")
        self._sites = live_sites(model)
        if not self._sites:
            raise InsertionError("VCReg was not inserted into this model; nothing to schedule.")
        self.warmup, self.decay, self.total, self.final = int(warmup), int(decay), total, final
        self.peaks = {site.name: (site.alpha, site.beta) for site in self._sites}
        self.last_step = 0
        self._apply()

    @property
    def factor(self) -> float:
        """What α and β are multiplied by now."""
        t = self.last_step
        if t < self.warmup:
            return t / self.warmup
        if self.total is None or t <= self.total - self.decay or not self.decay:
            return 1.0
        share = min((t - (self.total - self.decay)) / self.decay, 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2

    def step(self, to: int | None = None) -> None:
        """Go on by one step, or to a step, and set the coefficients."""
        self.last_step = self.last_step + 1 if to is None else to
        self._apply()

    def _apply(self) -> None:
        factor = self.factor
        for site in self._sites:
            alpha, beta = self.peaks[site.name]
            site.alpha, site.beta = factor * alpha, factor * beta

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the coefficients at factor 1, as plain data."""
        return {
            "last_step": self.last_step,
            "peaks": {name: list(pair) for name, pair in self.peaks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        **Raises:** `InsertionError` if it is of other sites.
        """
        if state["peaks"].keys() != self.peaks.keys():
            raise InsertionError(
                f"The schedule's state is of the sites {sorted(state['peaks'])}, and the model has "
                f"{sorted(self.peaks)}."
            )
        self.peaks = {name: (pair[0], pair[1]) for name, pair in state["peaks"].items()}
        self.step(state["last_step"])


def check_schedule(warmup: float, decay: float, final: float = 0.0) -> None:
    """Refuse lengths that are none, and a final factor that is no coefficient."""
    for name, value in (("warmup", warmup), ("decay", decay)):
        if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be a number of steps, ≥ 0.")
    check_coefficient("final", final)
