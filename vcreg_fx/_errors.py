"""The errors of insertion: each states the cause and shows the fix."""

from __future__ import annotations

from placement_rules import PlacementError


class InsertionError(PlacementError):
    """VCReg cannot be inserted into (or taken out of) this model; nothing has been changed."""


class InsideError(InsertionError):
    """A module's forward cannot be rewritten around a node in its middle."""


class ExportError(ValueError):
    """A model cannot be written in a format, or what was written does not do what it does."""
