"""Functions by their names, ``"module:function"``, as plain data can hold them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def named_function(name: str) -> Callable[..., Any] | None:
    """Return the function that ``"module:function"`` names; None if there is none."""
    module, colon, attribute = str(name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError):
        return None
    return found if callable(found) else None


def name_of(function: Callable[..., Any]) -> str | Callable[..., Any]:
    """Return the name by which a function can be found again; itself, where there is none."""
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    return name if named_function(name) is function else function
