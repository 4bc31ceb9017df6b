"""What a user sets and reads at a site: its coefficients, and the numbers of its last step."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from placement_rules._torch import mark_constant

from ._config import VCRegConfig, check_coefficient
from .regularizers import Penalize, Statistics

_COUNT = itertools.count()


class SiteValues:
    """The coefficients of a site now, and what its last training step saw.

    **Arguments:**

    - `channels`: d; 0 if it is not known.
    - `config`: the configuration that the site starts with.
    - `penalize`: what acts instead of VCReg, if anything.
    """

    def __init__(self, channels: int, config: VCRegConfig, penalize: Penalize | None) -> None:
        self.channels = channels
        self.config = config
        self.penalize = penalize
        self._alpha = torch.tensor(config.alpha, dtype=torch.float64, device="cpu")
        self._beta = torch.tensor(config.beta, dtype=torch.float64, device="cpu")
        self._step = torch.zeros((), dtype=torch.int64, device="cpu")
        self._numbers: Tensor | None = None  # as `numbers` has them
        self._compiled: Tensor | None = None  # where compiled steps write them
        self._memory = _memory_of(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a step."""
        state = {**self.__dict__, "_numbers": None, "_compiled": None}
        del state["_memory"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or loaded site."""
        self.__dict__.update(state)
        self._memory = _memory_of(self)

    @property
    def alpha(self) -> float:
        """The weight of the variance loss."""
        return float(self._alpha)

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha.fill_(check_coefficient("alpha", value))

    @property
    def beta(self) -> float:
        """The weight of the covariance loss."""
        return float(self._beta)

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta.fill_(check_coefficient("beta", value))

    @property
    def step(self) -> int:
        """How many backward passes an estimated site has seen, from which its draws follow.

        Assign what a checkpoint noted, to go on with the same draws.
        """
        return int(self._step)

    @step.setter
    def step(self, value: int) -> None:
        self._step.fill_(value)

    @property
    def numbers(self) -> Tensor | None:
        """C_ii + ε of each feature, ℓ_cov (or a competitor's value) and n of the last step.

        Shape (d + 2,), on the device; with `ratio` the factor follows.
        """
        return self._numbers

    @property
    def _first_other(self) -> int:
        """Where in `numbers`, from the end, those begin that belong to no feature."""
        return -2 if self.config.ratio is None else -3

    @property
    def value(self) -> Tensor | None:
        """ℓ_cov, or a competitor's value, of the last step, as a 0-d tensor on the device."""
        return None if self._numbers is None else self._numbers[self._first_other]

    @property
    def std(self) -> Tensor | None:
        """√(C_ii + ε) of each feature in the last step, shape (d,)."""
        return None if self._numbers is None else self._numbers[: self._first_other].sqrt()

    @property
    def variance_loss(self) -> float | None:
        """ℓ_var of the last step (Eq. 3); zero for less than two samples."""
        if self.samples is not None and self.samples < 2:
            return 0.0
        std = self.std
        return None if std is None else float(torch.relu(self.config.gamma - std).mean())

    @property
    def covariance_loss(self) -> float | None:
        """ℓ_cov of the last step (Eq. 4, or Eq. 10 if δ is given); None for a competitor."""
        if self._numbers is None or self.penalize is not None:
            return None
        return float(self._numbers[self._first_other])

    @property
    def samples(self) -> int | None:
        """How many samples the last step had (n)."""
        return None if self._numbers is None else int(self._numbers[self._first_other + 1])

    @property
    def enough(self) -> Tensor | None:
        """Whether the last step had two samples or more, as a 0-d tensor on the device."""
        return None if self._numbers is None else self._numbers[self._first_other + 1] > 1

    @property
    def factor(self) -> float | None:
        """What the penalty's gradient was multiplied by in the last step: 1 without `ratio`."""
        if self._numbers is None:
            return None
        return 1.0 if self.config.ratio is None else float(self._numbers[-1])

    @property
    def penalty(self) -> float | None:
        """α ℓ_var + β ℓ_cov of the last step (Eq. 5); α times a competitor's value."""
        if self._numbers is not None and self.penalize is not None:
            return self.alpha * float(self._numbers[self._first_other])
        variance, covariance = self.variance_loss, self.covariance_loss
        if variance is None or covariance is None:
            return None
        return self.alpha * variance + self.beta * covariance

    def _record(self, statistics: Statistics) -> None:
        """Note the numbers of a step in one small tensor, which compiled code can write to too."""
        variances, loss = statistics.variances.detach(), statistics.covariance_loss.detach()
        n = statistics.samples
        count = n.view(1) if isinstance(n, Tensor) else loss.new_full((1,), n)
        factor = statistics.factor
        last = [] if factor is None else [factor.view(1).to(loss.dtype)]
        numbers = torch.cat([variances, loss.view(1), count, *last])
        if torch.compiler.is_compiling():
            if self.channels:  # known, unless the model could not be recorded
                self._memory(numbers.dtype, str(numbers.device)).copy_(numbers)
            return
        kept = self._compiled
        if kept is not None and (kept.dtype, kept.device) == (numbers.dtype, numbers.device):
            numbers = kept.copy_(numbers)  # a compiled step may follow, which writes there
        self._numbers = numbers


def _memory_of(site: SiteValues) -> Callable[[torch.dtype, str], Tensor]:
    """Return a function that gives the tensor to which a site's compiled steps write numbers.

    The compiler knows a constant by its function's name: each site needs one of its own.
    """
    known = weakref.ref(site)

    def memory(dtype: torch.dtype, device: str) -> Tensor:
        owner = known()
        assert owner is not None  # who is being compiled
        numbers = owner._compiled
        if numbers is None or (numbers.dtype, str(numbers.device)) != (dtype, device):
            numbers = torch.zeros(owner.channels - owner._first_other, dtype=dtype, device=device)
        owner._numbers = owner._compiled = numbers
        return numbers

    memory.__code__ = memory.__code__.replace(co_name=f"vcreg_memory_{next(_COUNT)}")
    mark_constant(memory)
    return memory
