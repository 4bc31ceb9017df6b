"""Do something to a model or a process, and leave it as it was: modes, random states, threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
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


@contextmanager
def frozen(model: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Run a model in eval mode without gradients, on a device; all is as it was after.

    By default where the model is, which is told.
    """
    parameter = next(model.parameters(), None)
    before = parameter.device if parameter is not None else torch.device("cpu")
    wanted = before if device is None else torch.device(device)
    with keeping_modes(model), torch.no_grad():
        model.eval()
        try:
            if wanted != before:
                model.to(wanted)
            yield wanted
        finally:
            if wanted != before:
                model.to(before)


@contextmanager
def keeping_randomness() -> Iterator[None]:
    """Let random numbers be drawn by torch, NumPy and Python, as if they were not."""
    import numpy as np

    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=cuda_devices()):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def seed_all(seed: int) -> None:
    """Let the random numbers of torch, NumPy and Python follow from a seed."""
    import numpy as np

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw torch's random numbers from a seed, on the CPU and a device; its states come back."""
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads of the CPU; None is as many as now."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cuda_devices() -> range:
    """Return the numbers of the GPUs that may have random states, if any was used."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
