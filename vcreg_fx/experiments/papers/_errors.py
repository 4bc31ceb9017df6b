"""The errors of reproductions."""

from __future__ import annotations


class ReproductionError(ValueError):
    """An experiment cannot be run as it was asked for; nothing has been trained for it."""
