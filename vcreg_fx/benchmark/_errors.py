"""What the benchmark raises."""

from __future__ import annotations

from placement_rules import UserError


class BenchError(UserError, ValueError):
    """A benchmark that cannot be run as it was asked for."""
