"""The version, which exported files name."""

__version__ = "0.2.0"
