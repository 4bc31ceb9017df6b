"""Search a recording for the network's blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from torch import fx, nn

from .._torch import BASES_OF_CONVOLUTIONS
from ..recording import Recording, Scope, keeps_container_forward
from ._classifiers import last_layers
from ._merges import Ancestry, add_operands, concatenations, residual_adds

_ADD = "its own forward adds a residual"
_CONCATENATION = "its own forward concatenates branches"
_RUN = "it is one of a run of modules of several layers, in a network that merges nothing"
_WEIGHTED = (nn.Linear, BASES_OF_CONVOLUTIONS)


class BlockSearch:
    """The blocks of one recording, and the reason for every module that is none.

    Made by ``recording.once(BlockSearch)``.
    """

    def __init__(self, recording: Recording) -> None:
        recording.tell_unseen()
        self._first_call = {scope.path: scope for scope in reversed(recording.scopes) if scope.path}
        self._class = {path: type(scope.module) for path, scope in self._first_call.items()}
        self._after_heads = last_layers(recording)[1]
        self._kind, self._merges = self._first_kind()

    def merges(self, scope: Scope) -> list[fx.Node]:
        """Return the residual adds of a scope; its concatenations, in a network without adds."""
        if scope not in self._merges:
            find = concatenations if self._kind == _CONCATENATION else residual_adds
            self._merges[scope] = self._before_heads(find(scope))
        return self._merges[scope]

    def output(self, scope: Scope) -> fx.Node | None:
        """Return the output tensor that carries a call's last merge, or its first activation."""
        ancestry = Ancestry(scope)
        for merge in reversed(self.merges(scope)):
            for node in scope.activations:
                if ancestry.depends(node, merge):
                    return node
        return next(iter(scope.activations), None)

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
        if scope is None or path not in self._around_runs:
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
            path: (_position(path), self._class[path])
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
        kept = {path for path in self._merging if path not in self._around_runs}
        found = self._without_helpers({path for path in kept if _ancestor(path, kept) is None})
        classes = Counter(self._class[path] for path in found)
        positions = Counter(map(_position, found))
        repeated = {p for p in found if classes[self._class[p]] > 1 or positions[_position(p)] > 1}
        return repeated or found  # a lone module beside repeated ones pools or fuses

    def _without_helpers(self, paths: set[str]) -> set[str]:
        """Drop classes of one weighted layer (positional convolutions) beside whole blocks."""
        largest = Counter[type]()
        for path in paths:
            count = _weighted_layers(self._first_call[path].module)
            largest[self._class[path]] = max(largest[self._class[path]], count)
        return {path for path in paths if largest[self._class[path]] > 1} or paths

    @cached_property
    def _siblings(self) -> set[str]:
        classes = {self._class[path] for path in self._outermost}
        positions = set(map(_position, self._outermost))
        around = {above for path in self._outermost for above in _ancestors(path)}
        found = {
            path
            for path, scope in self._first_call.items()
            if path not in self._outermost
            and path not in around
            and _ancestor(path, self._outermost) is None
            and (
                self._class[path] in classes
                or (_position(path) in positions and _is_whole_block(scope.module))
            )
        }
        return {path for path in found if _ancestor(path, found) is None}

    @cached_property
    def _around_runs(self) -> set[str]:
        """The modules inside which two or more numbered siblings of one class merge branches."""
        siblings = Counter(
            (path.rpartition(".")[0], self._class[path])
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
