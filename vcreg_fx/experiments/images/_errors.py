"""The errors of data."""

from __future__ import annotations


class DataError(ValueError):
    """Data is not there, or is not what was said; the message says where to get it."""
