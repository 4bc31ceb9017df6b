"""Run a model in another mode, and give every module its own mode back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Let ``train()`` and ``eval()`` be called on a model; the modules' modes come back after."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
