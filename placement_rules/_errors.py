"""The errors of placement: each states the cause and shows the fix."""

from __future__ import annotations


class PlacementError(ValueError):
    """A rule cannot be applied to this model; nothing has been changed."""


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
