"""``at``: sites by their names."""

from __future__ import annotations

import difflib

from .._errors import PlacementError
from .._node import is_activation
from ..recording import Recording
from ._parse import register
from ._rule import Found, Rule
from ._spot import locate


class At(Rule):
    """Selects sites by name, as plans and `get_config` show them.

    **Arguments:**

    - `names`: such as ``"layer1.0:output"``, ``"fc:input"``, ``"blocks.3:add_1"``.
    """

    def __init__(self, *names: str) -> None:
        for name in names:
            if not isinstance(name, str) or ":" not in name:
                raise PlacementError(
                    f"{name!r} is not a site's name: write the module's path, a colon, and the "
                    'place, such as "layer1.0:output".'
                )
        self.names = names

    def find(self, recording: Recording) -> list[Found]:
        """Return the tensors with these names.

        **Raises:** `PlacementError` if a name does not exist, with near ones.
        """
        found: dict[str, list[Found]] = {}
        for name in self.names:
            found[name] = [
                (scope, node)
                for scope in recording.calls(name.partition(":")[0])
                for node in scope.graph.nodes
                if is_activation(node)
                and node.op != "get_attr"
                and locate(recording, scope, node).name == name
            ]
            if not found[name]:
                raise PlacementError(f"There is no site {name!r}. {self._near(recording, name)}")
        return [item for items in found.values() for item in items]

    def why_none(self, recording: Recording) -> str:
        return "it names no site."

    def __str__(self) -> str:
        return f"at({', '.join(repr(name) for name in self.names)})"

    def _near(self, recording: Recording, name: str) -> str:
        path = name.partition(":")[0]
        calls = recording.calls(path)
        if not calls:
            paths = [scope.path for scope in recording.scopes]
            near = difflib.get_close_matches(path, paths, n=3)
            hint = f" Near: {', '.join(near)}." if near else ""
            return f"No module {path!r} was called.{hint}"
        places = [
            locate(recording, calls[0], node).name
            for node in calls[0].graph.nodes
            if is_activation(node) and node.op in {"call_function", "placeholder"}
        ]
        return f"Sites of {path}: {', '.join(dict.fromkeys(places))}."


at = register("at", At)
"""``at(*names)``: sites by their names."""
