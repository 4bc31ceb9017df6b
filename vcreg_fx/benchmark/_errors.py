"""What the benchmark raises."""

from __future__ import annotations


class BenchError(ValueError):
    """A benchmark that cannot be run as it was asked for."""
