"""``downsample``: the output of each downsampling layer between stages (VCReg3, VCReg4)."""

from __future__ import annotations

from torch import fx

from .._node import is_activation, value
from ..recording import Recording, Scope
from ..structure import BlockSearch
from ._blocks import blocks
from ._rule import Found, Rule, register


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
        search = recording.once(BlockSearch)
        called = [scope for path in search.paths for scope in recording.calls(path)]
        if not called:
            return []
        first, last = min(s.start for s in called), max(s.end for s in called)
        found = [
            (scope, output)
            for scope in _outermost(recording, search, called)
            if scope.start < last and (output := _reduced(recording, search, scope)) is not None
        ]
        count = sum(scope.start < first for scope, _ in found)  # those of the stem
        return found[max(count - 1, 0) if self.stem else count :]

    def why_none(self, recording: Recording) -> str:
        paths = recording.once(BlockSearch).paths
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
        return "downsample(stem=True)" if self.stem else "downsample"


downsample = register("downsample", Downsample())
"""The output of each downsampling layer between stages, and the stem with ``stem=True``."""
VCReg3 = register("VCReg3", downsample)
"""`downsample`, by the paper's name."""
VCReg4 = register("VCReg4", blocks | downsample)
"""``blocks | downsample``, by the paper's name."""


def _outermost(recording: Recording, search: BlockSearch, blocks: list[Scope]) -> list[Scope]:
    """Return the blocks, and the outermost module calls that neither hold nor lie in one.

    What a module that fuses branches (HRNet's) does between its blocks is left out.
    """
    taken = set(blocks)
    holders = {above for block in blocks for above in block.above}
    return [
        scope
        for scope in recording.scopes
        if scope not in holders
        and (scope.parent is None or scope.parent in holders)
        and (scope in taken or not any(search.fuses(above.path) for above in scope.above))
    ]


def _reduced(recording: Recording, search: BlockSearch, scope: Scope) -> fx.Node | None:
    """Return the output of a call whose resolution is below that of every comparable input."""
    output = search.output(scope)
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
