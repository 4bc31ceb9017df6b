"""``modules``: the outputs of modules that are named, of a class, or picked by a function."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from torch import nn

from .._errors import PlacementError
from .._node import is_activation
from ..recording import Recording
from ._rule import Found, Rule

Wanted = str | type[nn.Module] | Callable[[str, nn.Module], bool]


class Modules(Rule):
    """Selects the outputs of modules.

    **Arguments:**

    - `wanted`: a path, in which ``*`` stands for any one component and ``**`` for any number
      (``"encoder.layers.*"``); a class; or a function of path and module.
    """

    def __init__(self, wanted: Wanted) -> None:
        if not (isinstance(wanted, str) or callable(wanted)):
            raise PlacementError(
                f"modules({wanted!r}): give a path, a module class, or a function of path and "
                "module that returns a bool."
            )
        self.wanted = wanted

    def wants(self, path: str, module: nn.Module) -> bool:
        """Whether a module is meant."""
        if isinstance(self.wanted, str):
            return _matches(self.wanted, path)
        if isinstance(self.wanted, type):
            return isinstance(module, self.wanted)
        return bool(self.wanted(path, module))

    def find(self, recording: Recording) -> list[Found]:
        """Return the first activation in the output of each call of the wanted modules."""
        found = []
        for scope in recording.scopes:
            if self.wants(scope.path, scope.module):
                outputs = [node for _, node in scope.outputs if is_activation(node)]
                found.extend([(scope, node) for node in outputs[:1]])
        return found

    def why_none(self, recording: Recording) -> str:
        """Tell modules that were not called from modules that do not exist, and show near ones."""
        there = [
            path for path, module in recording.model.named_modules() if self.wants(path, module)
        ]
        if there:
            return f"{', '.join(there[:5])} exists, but was not called or returns no activation."
        called = list(dict.fromkeys(scope.path for scope in recording.scopes if scope.path))
        near: list[str] = []
        if isinstance(self.wanted, str):
            near = difflib.get_close_matches(self.wanted, called, n=5, cutoff=0.4)
            near.sort(key=called.index)
        return f"no such module. Some that were called: {', '.join(near or called[:8])}."

    def __str__(self) -> str:
        """Return the rule as it is written in a string, where it can be."""
        if isinstance(self.wanted, str):
            return f"modules({self.wanted!r})"
        return f"modules({getattr(self.wanted, '__name__', repr(self.wanted))})"


modules = Modules


def _matches(pattern: str, path: str) -> bool:
    parts = re.split(r"(\*\*|\*)", pattern)
    wild = {"**": ".*", "*": r"[^.]*"}
    return (
        re.fullmatch("".join(wild.get(part, re.escape(part)) for part in parts), path) is not None
    )
