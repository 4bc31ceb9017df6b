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
    numpy = sys.modules.get("numpy")
    keepers: list[tuple[Any, Any]] = [
        (random.getstate, random.setstate),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if numpy is not None:
        keepers.append((numpy.random.get_state, numpy.random.set_state))
    if torch.cuda.is_initialized():
        keepers.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    before = [state() for state, _ in keepers]
    try:
        yield
    finally:
        if threading.active_count() == 1:
            for (_, restore), state in zip(keepers, before, strict=True):
                restore(state)


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
