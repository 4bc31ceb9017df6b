"""Inside form: rewrite one module's forward around a node in its middle.

The module is traced symbolically, every child a leaf. Tracing bakes plain Python values into the
graph without a word, so the attributes it reads are watched, and a forward that depends on one that
may change later is refused.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import fx, nn

from placement_rules import Scope, leaves, operation

from .._errors import InsideError

_FLAGS = {"training", "grad_checkpointing", "gradient_checkpointing"}
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Inside:
    """A module's forward as a graph.

    **Attributes:**

    - `graph`: the traced forward; its placeholders are the arguments in `given`.
    - `names`: the forward's positional parameters.
    - `given`: the parameters that held tensors when the model was recorded.
    - `fixed`: the values of all other parameters then, which calls have to repeat.
    """

    graph: fx.Graph
    names: tuple[str, ...]
    given: tuple[str, ...]
    fixed: dict[str, Any]

    def bind(self, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the arguments of the graph for one call of the module.

        **Raises:** `InsideError` if the call differs from the recorded one in anything but tensors.
        """
        values = {**self.fixed, **dict(zip(self.names, args, strict=False)), **kwargs}
        for name, value in values.items():
            if name in self.given:
                continue
            if name not in self.fixed or (
                value is not self.fixed[name] and value != self.fixed[name]
            ):
                raise InsideError(
                    f"{where} was rewritten for calls with {name}={self.fixed.get(name)!r}, as "
                    f"recorded, and is now called with another value. Insert with example_inputs "
                    'that call it this way, or use a rule for module outputs, such as "blocks".'
                )
        return [values[name] for name in self.given]


def trace_inside(module: nn.Module, forward: Any, scope: Scope) -> Inside:
    """Trace one module's own forward, as it was called in ``scope``.

    **Arguments:**

    - `module`: the module; it is not changed.
    - `forward`: its class's forward, before any rewriting.
    - `scope`: a recorded call of the module.

    **Raises:** `InsideError`, with the reason and the rules that would work.
    """
    names, given, fixed = _arguments(forward, scope)
    duplicate = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        duplicate.__dict__[table] = dict(duplicate.__dict__[table])
    before = set(duplicate.__dict__)

    def call(self: nn.Module, values: tuple[Any, ...]) -> Any:
        return forward(self, **dict(zip(given, values, strict=True)), **fixed)

    namespace: dict[str, Any] = {"call": call}
    listed = ", ".join(given)
    exec(f"def forward(self, {listed}):\n    return call(self, ({listed},))\n", namespace)
    duplicate.__class__ = type(
        type(module).__name__, (type(module),), {"forward": namespace["forward"]}
    )
    read: set[tuple[nn.Module, str]] = set()
    try:
        with _watch(duplicate, read):
            graph = _Tracer().trace(duplicate)
    except Exception as error:
        raise _refusal(scope, f"tracing it failed: {type(error).__name__}: {error}") from error
    if made := {name for name in set(duplicate.__dict__) - before if "_tensor_constant" in name}:
        raise _refusal(scope, f"it makes {len(made)} constant tensors in its forward")
    for owner, name in sorted(read, key=lambda item: item[1]):
        if name in _FLAGS or name in _assigned_later(type(owner)):  # type: ignore[arg-type]
            raise _refusal(
                scope,
                f"it reads {name!r}, which can change later, while a traced forward would keep "
                "today's value",
            )
    return Inside(graph, names, given, fixed)


def find_node(inside: fx.Graph, root: nn.Module, scope: Scope, node: fx.Node) -> fx.Node:
    """Return the traced node for a recorded one.

    Nodes are told apart by their operation and by the modules whose results they depend on.

    **Raises:** `InsideError` if the two graphs do not agree.
    """
    recorded = _keys(scope.graph, {n: n.meta["scope"].module for n in _calls(scope.graph)})
    traced = _keys(inside, {n: root.get_submodule(str(n.target)) for n in _calls(inside)})
    key = recorded[node]
    alike = [other for other, found in recorded.items() if found == key]
    candidates = [other for other, found in traced.items() if found == key]
    if len(alike) != len(candidates):
        raise _refusal(
            scope,
            f"{node.name} occurs {len(alike)} times in the recording and {len(candidates)} times "
            "when traced",
        )
    return candidates[alike.index(node)]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _arguments(
    forward: Any, scope: Scope
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and len(scope.args) >= len(parameters):
        raise _refusal(scope, "it takes any number of positional arguments")
    names = tuple(
        p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    )
    values = {p.name: p.default for p in parameters if p.default is not p.empty}
    values |= dict(zip(names, scope.args, strict=False)) | scope.kwargs
    given = tuple(name for name, value in values.items() if any(leaves(value)))
    fixed = {name: value for name, value in values.items() if name not in given}
    for name, value in fixed.items():
        if not isinstance(value, _PLAIN):
            raise _refusal(scope, f"its argument {name} is a {type(value).__name__}")
    return names, given, fixed


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module"]


def _keys(graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> dict[fx.Node, Any]:
    """Return, for each function node, its operation and the module calls it depends on."""
    above: dict[fx.Node, set[fx.Node]] = {}
    keys = {}
    for node in graph.nodes:
        above[node] = {node}.union(*(above[source] for source in node.all_input_nodes))
        if node.op in {"call_function", "call_method"}:
            calls = Counter(id(modules[n]) for n in above[node] if n.op == "call_module")
            keys[node] = operation(node.target), frozenset(calls.items())
    return keys


@contextmanager
def _watch(root: nn.Module, read: set[tuple[nn.Module, str]]) -> Iterator[None]:
    """Note which plain attributes of the root and of the modules below it are read."""
    watched = set(root.modules())

    def noting(self: nn.Module, name: str) -> Any:
        if not name.startswith("__") and self in watched:
            plain = object.__getattribute__(self, "__dict__")
            tables = (plain, plain.get("_buffers", {}), plain.get("_modules", {}))
            if any(name in table and isinstance(table[name], _PLAIN) for table in tables):
                read.add((self, name))
        return object.__getattribute__(self, name)

    nn.Module.__getattribute__ = noting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


@cache
def _assigned_later(cls: Any) -> frozenset[str]:
    """Return the attributes that methods other than ``__init__`` of a class assign."""
    found = set()
    for base in cls.__mro__[: -len(nn.Module.__mro__)]:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # a class without source: what it assigns cannot be known
        for method in ast.walk(tree):
            if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                found |= {
                    node.attr
                    for node in ast.walk(method)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                }
    return frozenset(found)


def _refusal(scope: Scope, reason: str) -> InsideError:
    return InsideError(
        f"{scope.path or 'the model itself'} ({type(scope.module).__name__}) cannot be rewritten "
        f"in the middle of its forward: {reason}. Rules for module outputs work, such as "
        '"blocks" or "head"; so does moving this step of the forward into a module of its own.'
    )
