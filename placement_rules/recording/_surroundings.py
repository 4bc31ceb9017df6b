"""What a pass leaves as it was around it, and other threads do not notice."""

from __future__ import annotations

import logging
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._torch import FAKE_LOGGER

# Held while Python makes objects of a syntax tree, or compiles them: releases such as 3.11.7 count
# how deep they are for all threads at once, and fail where another's turn comes in the middle.
SYNTAX_TREES = threading.RLock()


@contextmanager
def keeping_randomness() -> Iterator[None]:
    """Undo what is drawn of the random numbers of torch, NumPy and Python, in a single thread.

    Where other threads run they draw from the same generators. To go back would give them numbers
    twice, so that the generators stay where they are.
    """
    before = _random_states()
    try:
        yield
    finally:
        if threading.active_count() == 1:
            _restore(before)


def _random_states() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    drawn_by_numpy = None if numpy is None else numpy.random.get_state()
    return random.getstate(), drawn_by_numpy, torch.get_rng_state(), on_devices


def _restore(states: tuple[Any, ...]) -> None:
    drawn_by_python, drawn_by_numpy, drawn_by_torch, on_devices = states
    random.setstate(drawn_by_python)
    if drawn_by_numpy is not None:
        sys.modules["numpy"].random.set_state(drawn_by_numpy)
    torch.set_rng_state(drawn_by_torch)
    if on_devices:
        torch.cuda.set_rng_state_all(on_devices)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging a traceback for every input that a model turns out not to take."""
    here = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger = logging.getLogger(FAKE_LOGGER)
    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)
