"""``at`` and ``modules``: sites by their names, and the outputs of modules by theirs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

import torch
from torch import fx, nn

from .._errors import PlacementError
from .._node import is_activation
from ..axes import Layout
from ..recording import Recording, Scope, Writes, keeps_container_forward
from ._rule import Found, Rule, register
from ._site import Site, locate

Wanted = str | type[nn.Module] | Callable[[str, nn.Module], bool]


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
        wanted = [scope for scope in recording.scopes if self.wants(scope.path, scope.module)]
        return [(scope, node) for scope in wanted for node in scope.activations[:1]]

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


modules = register("modules", Modules)
"""``modules(wanted)``: the outputs of modules, by path, class, or a function of path and module."""


def _matches(pattern: str, path: str) -> bool:
    """Whether a path fits, in a time linear in both: all ways to fit are followed side by side."""
    parts = re.findall(r"\*\*|\*|.", pattern, re.DOTALL)

    def on(places: Iterable[int]) -> set[int]:
        """Return places in the pattern, and those behind stars that stand for nothing."""
        found: set[int] = set()
        for first in places:
            end = first
            while end < len(parts) and parts[end] in {"*", "**"}:
                end += 1
            found.update(range(first, end + 1))
        return found

    places = on({0})
    for letter in path:
        there = {place for place in places if place < len(parts)}
        stay = {p for p in there if parts[p] == "**" or (parts[p] == "*" and letter != ".")}
        places = on(stay | {place + 1 for place in there if parts[place] == letter})
    return len(parts) in places


def unrecorded(model: nn.Module, rule: Rule, layout: Layout) -> tuple[Recording, list[Site]] | None:
    """Return the sites of a ``modules`` rule without running the model; None for other rules.

    Shapes are unknown then, and each site takes a copy, since what is written in place is unknown.
    A plain container's output is that of its last child. The recording is empty.
    """
    if not isinstance(rule, Modules):
        return None
    wanted = [(path, m) for path, m in model.named_modules() if rule.wants(path, m)]
    if not wanted:
        return None
    graph = fx.Graph()
    node = graph.placeholder("unknown")
    sites = [
        Site(
            name=f"{path}:output",
            path=path,
            position="output",
            leaf=(),
            shape=(),
            dtype=torch.get_default_dtype(),
            layout=layout,
            calls=0,
            leads_on=True,
            clone="an unknown module",
            scope=Scope(path, model.get_submodule(path), graph),
            node=node,
        )
        for path in dict.fromkeys(_maker(path, module) for path, module in wanted)
    ]
    return Recording(model, [Scope("", model, fx.Graph())], fx.Graph(), Writes()), sites


def _maker(path: str, module: nn.Module) -> str:
    while keeps_container_forward(module) and (children := list(module.named_children())):
        name, module = children[-1]
        path = f"{path}.{name}"
    return path
