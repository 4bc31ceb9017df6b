"""The names by which rules are written in strings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._errors import PlacementError
from ._rule import Rule

NAMES: dict[str, Rule | Callable[..., Any]] = {}


def register(name: str, rule: Rule | Callable[..., Rule]) -> None:
    """Give a rule a name, so that strings can use it.

    **Arguments:**

    - `name`: an identifier that no rule has yet.
    - `rule`: a rule, or a function that returns one (``"name(arguments)"`` in strings).

    **Raises:** `PlacementError` if the name is taken or no identifier.
    """
    if not name.isidentifier():
        raise PlacementError(f"{name!r} is not an identifier, so strings could not use it.")
    if name in NAMES:
        raise PlacementError(f"There is a rule {name!r} already: {NAMES[name]}.")
    if not isinstance(rule, Rule) and not callable(rule):
        raise PlacementError(f"{rule!r} is neither a rule nor a function that returns one.")
    NAMES[name] = rule
