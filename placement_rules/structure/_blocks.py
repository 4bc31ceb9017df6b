"""Search a recording for the network's blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import fx, nn

from .._torch import BASES_OF_CONVOLUTIONS
from ..recording import Recording, Scope, keeps_container_forward
from ._classifiers import last_layers
from ._merges import concatenations
from ._residuals import add_operands, residual_adds

_ADD = "its own forward adds a residual"
_CONCATENATION = "its own forward concatenates branches"
_RUN = "it is one of a run of modules of several layers, in a network that merges nothing"
_WEIGHTED = (nn.Linear, BASES_OF_CONVOLUTIONS)


class BlockSearch:
    """The blocks of one recording, and the reason for every module that is none."""

    _cache: ClassVar[WeakKeyDictionary[Recording, BlockSearch]] = WeakKeyDictionary()

    def __init__(self, recording: Recording) -> None:
        recording.tell_unseen()
        self._first_call = {scope.path: scope for scope in reversed(recording.scopes) if scope.path}
        self._after_heads = last_layers(recording)[1]
        self._kind, self._merges = self._first_kind()

    @classmethod
    def of(cls, recording: Recording) -> BlockSearch:
        """Return the search on a recording, made once."""
        if recording not in cls._cache:
            cls._cache[recording] = cls(recording)
        return cls._cache[recording]

    def merges(self, scope: Scope) -> list[fx.Node]:
        """Return the residual adds of a scope; its concatenations, in a network without adds."""
        if scope not in self._merges:
            find = concatenations if self._kind == _CONCATENATION else residual_adds
            self._merges[scope] = self._before_heads(find(scope))
        return self._merges[scope]

    def _first_kind(self) -> tuple[str, dict[Scope, list[fx.Node]]]:
        """Return what marks blocks in this network: adds, else concatenations, else their run."""
        for kind, find in ((_ADD, residual_adds), (_CONCATENATION, concatenations)):
            found = {s: self._before_heads(find(s)) for s in self._first_call.values()}
            if any(found.values()):
                return kind, found
        return _RUN, found

    def _before_heads(self, nodes: list[fx.Node]) -> list[fx.Node]:
        return [node for node in nodes if node.meta.get("flat") not in self._after_heads]

    @cached_property
    def paths(self) -> list[str]:
        """The paths of the blocks, in the order of their first calls."""
        chosen = self._outermost | self._siblings
        return sorted(chosen, key=lambda path: self._first_call[path].start)

    def explain(self, path: str) -> str:
        """Say why the module at ``path`` is, or is not, a block."""
        if path not in self._first_call:
            return "no block: it was not called in the recorded forward pass."
        if path in self._outermost:
            return f"a block: {self._kind}, and no block contains it."
        if path in self._siblings:
            return "a block: a sibling of blocks, of their class or at their position."
        if (outer := _ancestor(path, set(self.paths))) is not None:
            return f"no block: it lies inside the block {outer}."
        if self.fuses(path):
            return "no block: its own forward adds branches, but it contains a run of blocks."
        if path in self._merging:
            return f"no block: {self._kind}, but nothing else like it does."
        if any(other.startswith(f"{path}.") for other in self.paths):
            return "no block: its own forward merges nothing; it contains blocks."
        return "no block: its own forward merges nothing, and it is no sibling of a block."

    def fuses(self, path: str) -> bool:
        """Whether the module adds branches of its own around the runs of blocks it contains."""
        scope = self._first_call.get(path)
        if scope is None or not self._contains_run(path):
            return False
        return any(add_operands(node) for node in scope.graph.nodes)

    @cached_property
    def _merging(self) -> set[str]:
        if self._kind == _RUN:
            return self._run
        found = {path for path, scope in self._first_call.items() if self.merges(scope)}
        return {self._lifted(path) for path in found} if self._kind == _CONCATENATION else found

    @cached_property
    def _run(self) -> set[str]:
        """The numbered modules of several layers that stand beside others of their class."""
        whole = {
            path: (_position(path), type(scope.module))
            for path, scope in self._first_call.items()
            if path.rpartition(".")[2].isdigit() and _is_whole_block(scope.module)
        }
        times = Counter(whole.values())
        return {path for path, key in whole.items() if times[key] > 1}

    def _lifted(self, path: str) -> str:
        """Return the block around a helper that concatenates for it (VoVNet's list of layers)."""
        parent, _, name = path.rpartition(".")
        scope = self._first_call.get(parent)
        is_part = scope is not None and not keeps_container_forward(scope.module)
        return parent if is_part and not name.isdigit() else path

    @cached_property
    def _outermost(self) -> set[str]:
        kept = {path for path in self._merging if not self._contains_run(path)}
        found = self._without_helpers({path for path in kept if _ancestor(path, kept) is None})
        classes = Counter(type(self._first_call[path].module) for path in found)
        positions = Counter(_position(path) for path in found)
        repeated = {
            path
            for path in found
            if classes[type(self._first_call[path].module)] > 1 or positions[_position(path)] > 1
        }
        return repeated or found  # a lone module beside repeated ones pools or fuses

    def _without_helpers(self, paths: set[str]) -> set[str]:
        """Drop classes of one weighted layer (positional convolutions) beside whole blocks."""
        largest = Counter[type]()
        for path in paths:
            module = self._first_call[path].module
            largest[type(module)] = max(largest[type(module)], _weighted_layers(module))
        whole = {path for path in paths if largest[type(self._first_call[path].module)] > 1}
        return whole or paths

    @cached_property
    def _siblings(self) -> set[str]:
        classes = {type(self._first_call[path].module) for path in self._outermost}
        positions = {_position(path) for path in self._outermost}
        around = {above for path in self._outermost for above in _ancestors(path)}
        found = {
            path
            for path, scope in self._first_call.items()
            if path not in self._outermost
            and path not in around
            and _ancestor(path, self._outermost) is None
            and (
                type(scope.module) in classes
                or (_position(path) in positions and _is_whole_block(scope.module))
            )
        }
        return {path for path in found if _ancestor(path, found) is None}

    def _contains_run(self, path: str) -> bool:
        """Whether two or more numbered siblings of one class merge branches inside the module."""
        return path in self._around_runs

    @cached_property
    def _around_runs(self) -> set[str]:
        siblings = Counter(
            (path.rpartition(".")[0], type(self._first_call[path].module))
            for path in self._merging
            if path.rpartition(".")[2].isdigit()
        )
        runs = {parent for (parent, _), count in siblings.items() if count > 1}
        return runs | {above for parent in runs for above in _ancestors(parent)}


def _is_whole_block(module: nn.Module) -> bool:
    return _weighted_layers(module) > 1 and not keeps_container_forward(module)


def _weighted_layers(module: nn.Module) -> int:
    return sum(isinstance(child, _WEIGHTED) for child in module.modules())


def _position(path: str) -> str:
    """Return a path without its numbers: ``blocks.*.*`` for ``blocks.0.1``."""
    return re.sub(r"\d+", "*", path)


def _ancestor(path: str, others: set[str]) -> str | None:
    return next((other for other in _ancestors(path) if other in others), None)


def _ancestors(path: str) -> Iterator[str]:
    """Yield the paths of the modules around a module, below the root, the outermost first."""
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))
