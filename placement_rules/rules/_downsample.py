"""``downsample``: the output of each downsampling layer between stages (VCReg3)."""

from __future__ import annotations

from torch import fx

from .._recording import Recording, Scope, is_activation
from .._rule import Found, Rule
from ._blocks import block_output, block_paths


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
        paths = set(block_paths(recording))
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
        paths = block_paths(recording)
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
    """Return the blocks, and the outermost module calls that neither hold nor lie in one."""
    holders = set()
    for block in blocks:
        scope: Scope | None = block.parent
        while scope is not None:
            holders.add(scope)
            scope = scope.parent
    return [
        scope
        for scope in recording.scopes
        if scope not in holders and (scope.parent is None or scope.parent in holders)
    ]


def _reduced(recording: Recording, scope: Scope) -> fx.Node | None:
    """Return the output of a call whose resolution is below that of its largest input."""
    output = block_output(scope)
    if output is None:
        return None
    after = recording.locations(output)
    before = [
        count
        for _, node in scope.inputs
        if is_activation(node) and (count := recording.locations(node)) is not None
    ]
    return output if after is not None and before and after < max(before) else None
