"""The numbers of a site's last training step, which its autograd node leaves there."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from placement_rules._torch import mark_constant

from ._closed_form import Statistics
from ._config import VCRegConfig

_COUNT = itertools.count()


class Numbers:
    """What a site's last training step saw.

    **Arguments:**

    - `channels`: d; 0 if it is not known.
    - `config`: the configuration of the site.
    - `other`: whether a regularizer other than VCReg acts there.

    A step leaves what it has, and what is asked of it is worked out when it is read.
    """

    def __init__(self, channels: int, config: VCRegConfig, *, other: bool) -> None:
        self._seen: Statistics | None = None  # of the last step, where it was not compiled
        self._values: Tensor | None = None
        self._channels, self._config, self._other = channels, config, other
        self._compiled: Tensor | None = None  # where compiled steps write them
        self._memory = _memory_of(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a step."""
        state = {**self.__dict__, "_seen": None, "_values": None, "_compiled": None}
        del state["_memory"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or loaded object."""
        self.__dict__.update(state)
        self._memory = _memory_of(self)

    @property
    def values(self) -> Tensor | None:
        """C_ii + ε of each feature, ℓ_cov (or the other regularizer's value) and n, on the device.

        Shape (d + 2,); with `ratio` the factor follows. None before the first step.
        """
        if (seen := self._seen) is not None:
            self._seen, self._values = None, _joined(seen)
        return self._values

    @property
    def has_any(self) -> bool:
        """Whether there was a step."""
        return self._seen is not None or self._values is not None

    @property
    def _first_other(self) -> int:
        """Where in `values`, from the end, those begin that belong to no feature."""
        return -2 if self._config.ratio is None else -3

    @property
    def loss(self) -> Tensor | None:
        """ℓ_cov, or a competitor's value, of the last step, as a 0-d tensor on the device."""
        return None if self.values is None else self.values[self._first_other]

    @property
    def std(self) -> Tensor | None:
        """√(C_ii + ε) of each feature in the last step, shape (d,)."""
        return None if self.values is None else self.values[: self._first_other].sqrt()

    @property
    def variance_loss(self) -> float | None:
        """ℓ_var of the last step (Eq. 3); zero for less than two samples."""
        if self.samples is not None and self.samples < 2:
            return 0.0
        std = self.std
        return None if std is None else float(torch.relu(self._config.gamma - std).mean())

    @property
    def covariance_loss(self) -> float | None:
        """ℓ_cov of the last step (Eq. 4, or Eq. 10 if δ is given); None for a competitor."""
        if self.values is None or self._other:
            return None
        return float(self.values[self._first_other])

    @property
    def samples(self) -> int | None:
        """How many samples the last step had (n)."""
        return None if self.values is None else int(self.values[self._first_other + 1])

    @property
    def enough(self) -> Tensor | None:
        """Whether the last step had two samples or more, as a 0-d tensor on the device."""
        return None if self.values is None else self.values[self._first_other + 1] > 1

    @property
    def factor(self) -> float | None:
        """What the penalty's gradient was multiplied by in the last step: 1 without `ratio`."""
        if self.values is None:
            return None
        return 1.0 if self._config.ratio is None else float(self.values[-1])

    def record(self, statistics: Statistics) -> None:
        """Note a step; compiled code writes its numbers to one small tensor."""
        if torch.compiler.is_compiling():
            if self._channels:  # known, unless the model could not be recorded
                values = _joined(statistics)
                self._memory(values.dtype, str(values.device)).copy_(values)
        elif (kept := self._compiled) is None:
            self._seen = statistics
        else:  # a compiled step may follow, which writes there
            values = _joined(statistics)
            same = (kept.dtype, kept.device) == (values.dtype, values.device)
            self._values = kept.copy_(values) if same else values


def _joined(statistics: Statistics) -> Tensor:
    variances, loss = statistics.variances.detach(), statistics.covariance_loss.detach()
    n, factor = statistics.samples, statistics.factor
    count = n.view(1) if isinstance(n, Tensor) else loss.new_full((1,), n)
    last = [] if factor is None else [factor.view(1).to(loss.dtype)]
    return torch.cat([variances, loss.view(1), count, *last])


def _memory_of(numbers: Numbers) -> Callable[[torch.dtype, str], Tensor]:
    """Return a function that gives the tensor to which a site's compiled steps write numbers.

    The compiler knows a constant by its function's name: each site needs one of its own.
    """
    known = weakref.ref(numbers)

    def memory(dtype: torch.dtype, device: str) -> Tensor:
        owner = known()
        assert owner is not None  # who is being compiled
        values = owner._compiled
        if values is None or (values.dtype, str(values.device)) != (dtype, device):
            values = torch.zeros(owner._channels - owner._first_other, dtype=dtype, device=device)
        owner._values = owner._compiled = values
        owner._seen = None
        return values

    memory.__code__ = memory.__code__.replace(co_name=f"vcreg_memory_{next(_COUNT)}")
    mark_constant(memory)
    return memory
