"""``head``: the input of the last classification layer (VCReg1)."""

from __future__ import annotations

from collections.abc import Iterator

from .._node import is_activation
from ..recording import Recording
from ..structure import classified, last_layers
from ._rule import Found, Rule, register


class Head(Rule):
    """Selects the input of the last classification layer: VCReg1, the vanilla form (section 3.1).

    One site a classifier: 1, and 2 on distilled models. Of a cosine classifier, which scales its
    input to unit length, the input before that.
    """

    def find(self, recording: Recording) -> Iterator[Found]:
        for layer in last_layers(recording)[0]:
            source = classified(recording, layer)
            scope = layer.meta["scope"]
            node = next((n for n in scope.graph.nodes if n.meta.get("flat") is source), None)
            if is_activation(node):
                yield scope, node

    def why_none(self, recording: Recording) -> str:
        return (
            "its output is not made by a classification layer (a model built without a head, or "
            'one that returns features). "blocks" selects the outputs of its blocks; build the '
            "model with num_classes > 0 to have a head."
        )


head = register("head", Head())
"""The input of the last classification layer, one site a classifier."""
VCReg1 = register("VCReg1", head)
"""`head`, by the paper's name."""
