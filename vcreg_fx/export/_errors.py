"""The error of exporting."""

from __future__ import annotations


class ExportError(ValueError):
    """A model cannot be written in a format, or what was written does not do what it does."""
