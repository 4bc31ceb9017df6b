"""``residual``: every residual add, in the middle of blocks too."""

from __future__ import annotations

from collections.abc import Iterator

from ..recording import Recording
from ..structure import helper_add, last_layers, residual_adds
from ._rule import Found, Rule, register


class Residual(Rule):
    """Selects the sum of every residual add; that of a helper module in the helper.

    24 on ViT-B/32: one after attention and one after the MLP of each of 12 blocks. Sums of
    classifiers' outputs (the average of a distilled model's two heads) do not count.
    """

    def find(self, recording: Recording) -> Iterator[Found]:
        recording.tell_unseen()
        _, after_heads = last_layers(recording)
        for caller in recording.scopes:
            for found in residual_adds(caller):
                in_helper = found.op == "call_module"
                scope = found.meta["scope"] if in_helper else caller
                add = helper_add(scope) if in_helper else found
                if add is not None and add.meta["flat"] not in after_heads:
                    yield scope, add

    def why_none(self, recording: Recording) -> str:
        return (
            "nowhere in its forward pass is a branch added to what it branched off from (a plain "
            'stack, or a network that concatenates). "head" applies to any classifier.'
        )


residual = register("residual", Residual())
"""Every residual add, in the middle of blocks too."""
