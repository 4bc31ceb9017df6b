"""The errors of ablations."""

from __future__ import annotations

from placement_rules import UserError


class AblationError(UserError, RuntimeError):
    """An ablation cannot be run as it was asked for; trials that are finished stay in the store."""
