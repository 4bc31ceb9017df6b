"""The random states of this process: whether something drew from them, and giving them back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def keeping_randomness() -> Iterator[None]:
    """Let random numbers be drawn by torch, NumPy and Python, as if they were not."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=_devices()):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def randomness() -> tuple[Any, ...]:
    """Return what is equal as long as nobody draws a random number."""
    state: Any = np.random.get_state()
    torch_states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _devices())]
    drawn_by_torch = tuple(one.numpy().tobytes() for one in torch_states)
    return *drawn_by_torch, state[1].tobytes(), *state[2:], random.getstate()


def _devices() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
