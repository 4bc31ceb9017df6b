"""``residual``: every residual add, in the middle of blocks too."""

from __future__ import annotations

from ..recording import Recording
from ..structure import helper_add, last_layers, residual_adds
from ._rule import Found, Rule


class Residual(Rule):
    """Selects the sum of every residual add.

    24 on ViT-B/32: one after attention and one after the MLP of each of 12 blocks. Sums of
    classifiers' outputs (the average of a distilled model's two heads) do not count.
    """

    def find(self, recording: Recording) -> list[Found]:
        """Return the adds; that of a helper module is found in the helper."""
        recording.tell_unseen()
        found: list[Found] = []
        for scope in recording.scopes:
            for node in residual_adds(scope):
                if node.op == "call_module":
                    helper = node.meta["scope"]
                    add = helper_add(helper)
                    if add is not None:
                        found.append((helper, add))
                else:
                    found.append((scope, node))
        _, after_heads = last_layers(recording)
        return [(scope, node) for scope, node in found if node.meta["flat"] not in after_heads]

    def why_none(self, recording: Recording) -> str:
        """Explain that the model adds no branch to what it branched off from."""
        return (
            "nowhere in its forward pass is a branch added to what it branched off from (a plain "
            'stack, or a network that concatenates). "head" applies to any classifier.'
        )

    def __str__(self) -> str:
        """Return ``residual``."""
        return "residual"


residual = Residual()
