"""Time a training step: its forward and its backward, on the CPU or a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Quartiles = tuple[float, float, float]


class Clock:
    """Reads the time that work on a device took so far, in seconds.

    On a CPU with one thread it is the time that the thread ran, so that other programs on the
    machine count less; elsewhere it is wall-clock time, after the device has finished.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._of_thread = device.type == "cpu" and torch.get_num_threads() == 1

    @property
    def name(self) -> str:
        """What is measured, in words."""
        return "processor time of one thread" if self._of_thread else "wall-clock time"

    def read(self) -> float:
        """Return seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.thread_time() if self._of_thread else time.perf_counter()

    def of(self, work: Callable[[], object]) -> float:
        """Return how long some work takes."""
        start = self.read()
        work()
        return self.read() - start


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
