"""``downsample``: the output of each downsampling layer between stages (VCReg3)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from .._node import is_activation, value
from ..recording import Recording, Scope
from ..structure import BlockSearch
from ._blocks import block_output
from ._rule import Found, Rule


class Downsample(Rule):
    """Selects the output of each downsampling layer between stages: VCReg3.

    Where the resolution falls inside a block, that block's output is selected. `stem=True` adds
    the last reduction before the first block.
    """

    def __init__(self, *, stem: bool = False) -> None:
        self.stem = stem

    def __call__(self, *, stem: bool = False) -> Downsample:
        """Return the rule with other options: ``downsample(stem=True)``."""
        return Downsample(stem=stem)

    def find(self, recording: Recording) -> list[Found]:
        """Return the outputs whose resolution is below their module's input."""
        paths = set(BlockSearch.of(recording).paths)
        blocks = [scope for scope in recording.scopes if scope.path in paths]
        if not blocks:
            return []
        first, last = blocks[0].start, max(scope.end for scope in blocks)
        found = [
            (scope, output)
            for scope in _outermost(recording, blocks)
            if first <= scope.start < last and (output := _reduced(recording, scope)) is not None
        ]
        if self.stem:
            stem = [
                (scope, output)
                for scope in _outermost(recording, blocks)
                if scope.start < first and (output := _reduced(recording, scope)) is not None
            ]
            found = stem[-1:] + found
        return found

    def why_none(self, recording: Recording) -> str:
        """Explain that the resolution never falls between blocks."""
        paths = BlockSearch.of(recording).paths
        if not paths:
            return (
                "the model has no blocks (see the rule blocks), so it has no stages between which "
                "to look for downsampling layers."
            )
        return (
            f"its resolution is the same at all {len(paths)} blocks (as in a ViT), so there is no "
            'downsampling layer between stages. "blocks" selects the blocks; '
            '"downsample(stem=True)" selects the reduction before the first block.'
        )

    def __str__(self) -> str:
        """Return the rule as it is written in a string."""
        return "downsample(stem=True)" if self.stem else "downsample"


downsample = Downsample()


def _outermost(recording: Recording, blocks: list[Scope]) -> list[Scope]:
    """Return the blocks, and the outermost module calls that neither hold nor lie in one.

    What a module that fuses branches (HRNet's) does between its blocks is left out.
    """
    search = BlockSearch.of(recording)
    taken = set(blocks)
    holders = set()
    for block in blocks:
        scope: Scope | None = block.parent
        while scope is not None:
            holders.add(scope)
            scope = scope.parent
    return [
        scope
        for scope in recording.scopes
        if scope not in holders
        and (scope.parent is None or scope.parent in holders)
        and (scope in taken or not any(search.fuses(above.path) for above in _above(scope)))
    ]


def _above(scope: Scope) -> Iterator[Scope]:
    while scope.parent is not None:
        scope = scope.parent
        yield scope


def _reduced(recording: Recording, scope: Scope) -> fx.Node | None:
    """Return the output of a call whose resolution is below that of every comparable input."""
    output = block_output(BlockSearch.of(recording), scope)
    if output is None:
        return None
    shape = value(output).shape
    after = recording.locations(output)
    before = [
        count
        for _, node in scope.inputs
        if is_activation(node)
        and value(node).ndim == len(shape)
        and value(node).shape[0] == shape[0]
        and (count := recording.locations(node)) is not None
    ]
    if after is None or not before or after >= min(before):
        return None
    return output if after > 1 or len(shape) > 3 else None  # one token of many is a summary
