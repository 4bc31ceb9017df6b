"""Rules of a user's own: a function of the recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import fx

from .._errors import PlacementError
from ..recording import Recording, Scope
from ._rule import Found, Rule


class Custom(Rule):
    """Selects what a function of the recording returns.

    **Arguments:**

    - `function`: takes a `Recording`, returns pairs of a `Scope` and a node of its graph.
    """

    def __init__(self, function: Callable[[Recording], Iterable[Found]]) -> None:
        if not callable(function):
            raise PlacementError(f"custom({function!r}): give a function of the recording.")
        self.function = function

    def find(self, recording: Recording) -> Iterator[Found]:
        """Yield what the function returns.

        **Raises:** `PlacementError` if that is no pair of a scope and one of its nodes.
        """
        for item in self.function(recording):
            if not _is_pair(item):
                raise PlacementError(
                    f"{self} returned {item!r}; return pairs of a scope and a node of its graph."
                )
            yield item

    def why_none(self, recording: Recording) -> str:
        return "the function returned no tensor of the recording."


custom = Custom
"""``custom(function)``: what a function of the recording returns; by name, once registered."""


def _is_pair(item: object) -> bool:
    if not (isinstance(item, tuple) and len(item) == 2):
        return False
    scope, node = item
    return isinstance(scope, Scope) and isinstance(node, fx.Node) and node.graph is scope.graph
