"""``stages`` and ``stage(i)``: runs of blocks of equal resolution."""

from __future__ import annotations

from itertools import groupby

from .._errors import PlacementError
from ..recording import Recording
from ..structure import BlockSearch
from ._blocks import blocks
from ._rule import Filter, Found, Rule, register
from ._site import Spot


class Stages(Rule):
    """Selects the output of each run of blocks of equal resolution: that of its last block.

    4 on ResNet-50, ConvNeXt and Swin-T, 1 on ViT.
    """

    def find(self, recording: Recording) -> list[Found]:
        return [(run[-1].scope, run[-1].node) for run in recording.once(_runs)]

    def why_none(self, recording: Recording) -> str:
        return f"stages are runs of blocks. blocks: {blocks.why_none(recording)}"


class Stage(Filter):
    """Keeps what another rule selects in one stage: ``blocks & stage(2)``; alone, its blocks.

    A stage begins behind the last block of the stage before it, so that the downsampling layer
    between two stages belongs to the later one.

    **Arguments:**

    - `index`: which stage, from 0; negative numbers count from the end.
    """

    def __init__(self, index: int) -> None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise PlacementError(f"stage({index!r}): a stage is given by its number, from 0.")
        self.index = index

    def find(self, recording: Recording) -> list[Found]:
        spots = blocks.select(recording)
        return [(spot.scope, spot.node) for spot in spots if self.keeps(recording, spot)]

    def keeps(self, recording: Recording, spot: Spot) -> bool:
        """Whether a spot is computed in the stage."""
        runs = recording.once(_runs)
        if not -len(runs) <= self.index < len(runs):
            raise PlacementError(
                f"There is no stage {self.index} in {type(recording.model).__name__}: it has "
                f"{len(runs)} stages, numbered from 0."
            )
        index = self.index % len(runs)
        end = runs[index][-1].scope.end
        start = runs[index - 1][-1].scope.end if index else runs[0][0].scope.start
        return start <= int(spot.node.meta["time"]) < end

    def why_none(self, recording: Recording) -> str:
        return stages.why_none(recording)


stages = register("stages", Stages())
"""The output of each run of blocks of equal resolution."""
stage = register("stage", Stage)
"""``stage(index)``: what another rule selects in one stage, from 0; alone, its blocks."""


def _runs(recording: Recording) -> list[list[Spot]]:
    """Return the blocks' outputs in runs of equal resolution."""
    paths = set(recording.once(BlockSearch).paths)
    spots = [spot for spot in blocks.select(recording) if spot.scope.path in paths]
    runs = groupby(spots, key=lambda spot: recording.locations(spot.node))
    return [list(run) for _, run in runs]
