"""``blocks``: the output of each network block (VCReg2)."""

from __future__ import annotations

from torch import fx

from .._node import is_activation
from ..recording import Recording, Scope, keeps_container_forward
from ..structure import Ancestry, BlockSearch
from ._rule import Found, Rule


class Blocks(Rule):
    """Selects the output of each network block: VCReg2, the placement the paper settles on.

    A block is a module below the root whose own forward adds a residual, and which is outermost
    among such modules, after dropping any that contains a repeated run of others. Its siblings
    without a residual count too: those of the same class, and those at the same position that
    have children and a forward of their own and are more than one convolution with its norm. In a
    network without any residual add, concatenations of branches take the place of the adds; in one
    without either, numbered runs of modules of several layers (LCNet) are the blocks.
    """

    def find(self, recording: Recording) -> list[Found]:
        """Return the blocks' outputs."""
        search = BlockSearch.of(recording)
        return [
            (scope, output)
            for path in search.paths
            for scope in recording.calls(path)
            if (output := block_output(search, scope)) is not None
        ]

    def why_none(self, recording: Recording) -> str:
        """Explain that nothing marks blocks."""
        run = _longest_container(recording)
        hint = f" 'modules(\"{run}.*\")' selects the parts of {run} one by one;" if run else ""
        return (
            "no module below the root adds a residual or concatenates branches in its own "
            "forward, and there is no run of modules of several layers, so nothing marks where a "
            f'block ends (a plain stack).{hint} "head" applies to any '
            'classifier, and "residual" to adds in the forward of the model itself.'
        )

    def explain(self, recording: Recording, path: str) -> str:
        """Say why the module at ``path`` is, or is not, a block."""
        return BlockSearch.of(recording).explain(path)

    def __str__(self) -> str:
        """Return ``blocks``."""
        return "blocks"


blocks = Blocks()


def block_output(search: BlockSearch, scope: Scope) -> fx.Node | None:
    """Return the output tensor that carries a block's last merge, or its first activation."""
    activations = [node for _, node in scope.outputs if is_activation(node)]
    ancestry = Ancestry(scope)
    for merge in reversed(search.merges(scope)):
        for node in activations:
            if ancestry.depends(node, merge):
                return node
    return activations[0] if activations else None


def _longest_container(recording: Recording) -> str:
    containers = [s for s in recording.scopes if s.path and keeps_container_forward(s.module)]
    longest = max(containers, key=lambda s: len(list(s.module.children())), default=None)
    return "" if longest is None else longest.path
