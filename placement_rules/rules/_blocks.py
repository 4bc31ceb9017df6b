"""``blocks``: the output of each network block (VCReg2)."""

from __future__ import annotations

import re
from collections import Counter

from torch import fx, nn

from .._recording import Recording, Scope, is_activation, keeps_container_forward
from .._residuals import Ancestry, residual_adds
from .._rule import Found, Rule

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


class Blocks(Rule):
    """Selects the output of each network block: VCReg2, the placement the paper settles on.

    A block is a module below the root whose own forward adds a residual, and which is outermost
    among such modules, after dropping any that contains a repeated run of others. Its siblings
    without a residual count too: those of the same class, and those at the same position that
    have children and a forward of their own and are more than one convolution with its norm.
    """

    def find(self, recording: Recording) -> list[Found]:
        """Return the blocks' outputs."""
        return [
            (scope, output)
            for path in block_paths(recording)
            for scope in recording.calls(path)
            if (output := block_output(scope)) is not None
        ]

    def why_none(self, recording: Recording) -> str:
        """Explain that no module adds a residual."""
        run = _longest_container(recording)
        hint = f' "modules" can name the parts of {run} one by one;' if run else ""
        return (
            "no module below the root adds a residual in its own forward, so nothing marks where "
            f'a block ends (a plain stack).{hint} "head" applies to any classifier, and '
            '"residual" to adds in the forward of the model itself.'
        )

    def __str__(self) -> str:
        """Return ``blocks``."""
        return "blocks"


blocks = Blocks()


def block_paths(recording: Recording) -> list[str]:
    """Return the paths of the model's blocks, in the order of their first calls."""
    called = {scope.path: scope for scope in reversed(recording.scopes) if scope.path}
    adding = {path for path, scope in called.items() if residual_adds(scope)}
    kept = {path for path in adding if not _contains_run(path, adding, called)}
    chosen = {path for path in kept if not _has_ancestor(path, kept)}
    chosen |= _siblings(chosen, called)
    return sorted(chosen, key=lambda path: called[path].start)


def block_output(scope: Scope) -> fx.Node | None:
    """Return the output tensor that carries a block's residual sum, or its first activation."""
    activations = [node for _, node in scope.outputs if is_activation(node)]
    ancestry = Ancestry(scope)
    for add in residual_adds(scope):
        for node in activations:
            if ancestry.depends(node, add):
                return node
    return activations[0] if activations else None


def _contains_run(path: str, adding: set[str], called: dict[str, Scope]) -> bool:
    """Whether two or more siblings of one class add residuals inside the module."""
    inside = Counter(
        (other.rpartition(".")[0], type(called[other].module))
        for other in adding
        if other.startswith(f"{path}.")
    )
    return any(count > 1 for count in inside.values())


def _siblings(chosen: set[str], called: dict[str, Scope]) -> set[str]:
    classes = {type(called[path].module) for path in chosen}
    positions = {_position(path) for path in chosen}
    found = {
        path
        for path, scope in called.items()
        if path not in chosen
        and not _has_ancestor(path, chosen)
        and not any(other.startswith(f"{path}.") for other in chosen)
        and (
            type(scope.module) in classes
            or (_position(path) in positions and _is_whole_block(scope.module))
        )
    }
    return {path for path in found if not _has_ancestor(path, found)}


def _is_whole_block(module: nn.Module) -> bool:
    weighted = sum(isinstance(child, _WEIGHTED) for child in module.modules())
    return weighted > 1 and not keeps_container_forward(module)


def _position(path: str) -> str:
    """Return a path without its numbers: ``blocks.*.*`` for ``blocks.0.1``."""
    return re.sub(r"\d+", "*", path)


def _has_ancestor(path: str, others: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:length]) in others for length in range(1, len(parts)))


def _longest_container(recording: Recording) -> str:
    containers = [s for s in recording.scopes if s.path and keeps_container_forward(s.module)]
    longest = max(containers, key=lambda s: len(list(s.module.children())), default=None)
    return "" if longest is None else longest.path
