"""Errors that a user can set right: each states the cause and shows the fix."""

from __future__ import annotations


class UserError(Exception):
    """What a user asked for cannot be had; the message says why, and what can.

    The base of all errors of these packages: a program knows them by it from mistakes of its own.
    """


class PlacementError(UserError, ValueError):
    """A rule cannot be applied to this model."""


class NoSiteError(PlacementError):
    """A rule selected nothing; the message says why and what could be selected instead."""


class RuleSyntaxError(PlacementError):
    """A rule written as a string cannot be read."""


class RecordingError(PlacementError):
    """The model's forward pass could not be recorded."""


class ExampleInputsError(RecordingError):
    """No example input could be worked out from the model."""


class LayoutError(PlacementError):
    """The channel axis of a tensor is unknown, ambiguous, or contradicts the given layout."""
