"""``head``: the input of the last classification layer (VCReg1)."""

from __future__ import annotations

from .._node import is_activation
from ..recording import Recording
from ..structure import classified, last_layers
from ._rule import Found, Rule


class Head(Rule):
    """Selects the input of the last classification layer: VCReg1, the vanilla form (section 3.1).

    One site a classifier: 1, and 2 on distilled models. Of a cosine classifier, which scales its
    input to unit length, the input before that.
    """

    def find(self, recording: Recording) -> list[Found]:
        """Return the inputs of the last layers with a weight before the model's output."""
        found: list[Found] = []
        for layer in last_layers(recording)[0]:
            source = classified(recording, layer)
            scope = layer.meta["scope"]
            node = next((n for n in scope.graph.nodes if n.meta.get("flat") is source), None)
            if node is not None and is_activation(node):
                found.append((scope, node))
        return found

    def why_none(self, recording: Recording) -> str:
        """Explain that the output is not a classification layer's."""
        return (
            "its output is not made by a classification layer (a model built without a head, or "
            'one that returns features). "blocks" selects the outputs of its blocks; build the '
            "model with num_classes > 0 to have a head."
        )

    def __str__(self) -> str:
        """Return ``head``."""
        return "head"


head = Head()
