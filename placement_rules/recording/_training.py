"""A pass in train mode: it tells which tensors are written to in training only.

Its branches may be others than those of eval mode, drawn at random even, so that rules do not look
at it, and no graph is made of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from .._node import operation
from .._torch import storage_of
from ._fast import Results
from ._pass import FunctionCall, ModuleCall, Pass
from ._tree import Path, leaves
from ._writes import Write

Key = tuple[str, int, Path]  # what was called in a scope, which time, where in its result


@dataclass(eq=False)
class _Seen:
    """What was seen in a module call."""

    path: str
    module: nn.Module
    seen: dict[Key, tuple[int, int]] = field(default_factory=dict)  # the storage, and when
    counts: Counter[str] = field(default_factory=Counter)

    def next_of(self, name: str) -> int:
        self.counts[name] += 1
        return self.counts[name] - 1


class TrainingPass(Pass):
    """Notes the memory of every tensor of a pass, and what is written to it."""

    def __init__(self, model: nn.Module, copy: nn.Module, results: Results) -> None:
        super().__init__(model, copy.train(), results)
        self._calls: dict[tuple[str, int], _Seen] = {}
        self._times: Counter[str] = Counter()

    def written(self, path: str, call: int, key: Key) -> Write | None:
        """Return the first write to a tensor of a module call after it was there, if any."""
        found = self._calls.get((path, call))
        place = None if found is None else found.seen.get(key)
        return None if place is None else self.writes.after(*place)

    def end(self) -> None:
        super().end()
        self._kept.clear()

    def enter(self, call: ModuleCall) -> None:
        self._stack.append(_Seen(call.path, call.module))
        self._calls[call.path, self._times[call.path]] = self._stack[-1]
        self._times[call.path] += 1
        self._note("input", 0, call.tensors)

    def leave(self, module: nn.Module, output: Any) -> Any:
        found = list(leaves(output))
        self._note("output", 0, found)
        path = self._stack[-1].path
        self._pop()
        if self._stack:
            self._note(path, self._stack[-1].next_of(path), found)
        return output

    def called(self, call: FunctionCall) -> None:
        name = operation(call.func)
        time = self._stack[-1].next_of(name)
        self._note(name, time, call.made or [((), tensor) for tensor in call.written])
        where = f"{self._stack[-1].path}:{name}" + (f"_{time}" if time else "")
        for tensor in call.written:
            self.writes.add(Write(self._time, storage_of(tensor), where))

    def _note(self, name: str, time: int, found: list[tuple[Path, Tensor]]) -> None:
        now = self._tick()
        for path, tensor in found:
            self._kept.append(tensor)
            self._stack[-1].seen[name, time, path] = storage_of(tensor), now


def keys_of(graph: fx.Graph) -> dict[fx.Node, Key]:
    """Return the keys of a recorded scope's nodes, under which its pass in train mode has them."""
    counts: Counter[str] = Counter()
    keys: dict[fx.Node, Key] = {}
    for node in graph.nodes:
        if "leaf" in node.meta and node.args[0] in keys:
            name, time, _ = keys[node.args[0]]
            keys[node] = (name, time, node.meta["leaf"])
        elif node.op in {"call_function", "call_module"}:
            name = node.target if node.op == "call_module" else operation(node.target)
            keys[node] = (name, counts[name], ())
            counts[name] += 1
    return keys
