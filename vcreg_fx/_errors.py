"""The errors of the core: each states the cause and shows the fix."""

from __future__ import annotations

from placement_rules import PlacementError, UserError


class InsertionError(PlacementError):
    """VCReg cannot be inserted, taken out or used in the way asked for, or was not inserted."""


class InsideError(InsertionError):
    """A module's forward cannot be rewritten around a node in its middle."""


class ExportError(UserError, ValueError):
    """A model cannot be written in a format, or what was written does not do what it does."""
