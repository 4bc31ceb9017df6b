"""``blocks``: the output of each network block (VCReg2)."""

from __future__ import annotations

from collections.abc import Iterator

from ..recording import Recording, keeps_container_forward
from ..structure import BlockSearch
from ._rule import Found, Rule, register


class Blocks(Rule):
    """Selects the output of each network block: VCReg2, the placement the paper settles on.

    A block is a module below the root whose own forward adds a residual, and which is outermost
    among such modules, after dropping any that contains a repeated run of others. Its siblings
    without a residual count too: those of the same class, and those at the same position that
    have children and a forward of their own and are more than one convolution with its norm. In a
    network without any residual add, concatenations of branches take the place of the adds; in one
    without either, numbered runs of modules of several layers (LCNet) are the blocks.
    """

    def find(self, recording: Recording) -> Iterator[Found]:
        search = recording.once(BlockSearch)
        for path in search.paths:
            for scope in recording.calls(path):
                if (output := search.output(scope)) is not None:
                    yield scope, output

    def why_none(self, recording: Recording) -> str:
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
        return recording.once(BlockSearch).explain(path)


blocks = register("blocks", Blocks())
"""The output of each network block."""
VCReg2 = register("VCReg2", blocks)
"""`blocks`, by the paper's name."""


def _longest_container(recording: Recording) -> str:
    containers = [s for s in recording.scopes if s.path and keeps_container_forward(s.module)]
    longest = max(containers, key=lambda s: len(list(s.module.children())), default=None)
    return "" if longest is None else longest.path
