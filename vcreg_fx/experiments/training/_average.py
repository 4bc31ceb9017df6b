"""The moving average of a model's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._settings import TrainSettings


class Average:
    """The exponential moving average of weights and buffers, as torchvision's reference keeps it.

    **Arguments:**

    - `settings`: with ``ema_decay=0`` it does nothing.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self._model, self._every, self._decay = model, settings.ema_every, settings.ema_decay
        self._kept = {name: value.clone() for name, value in self._live()}

    def _live(self) -> list[tuple[str, torch.Tensor]]:
        return list(self._model.state_dict().items()) if self._decay else []

    def update(self, step: int) -> None:
        """Move the average towards the weights, every few steps."""
        if self._decay and step % self._every == 0:
            for name, value in self._live():
                if value.is_floating_point():
                    self._kept[name].lerp_(value, 1 - self._decay)
                else:
                    self._kept[name].copy_(value)

    def apply(self) -> None:
        """Give the model the averaged weights."""
        if self._decay:
            self._model.load_state_dict(self._kept)

    def state(self) -> dict[str, Any]:
        """Return the average, for a checkpoint."""
        return self._kept

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the average of a checkpoint."""
        for name, value in state.items():
            self._kept[name].copy_(value)
