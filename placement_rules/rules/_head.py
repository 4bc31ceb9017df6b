"""``head``: the input of the last classification layer (VCReg1)."""

from __future__ import annotations

from torch import fx

from .._operation import operation
from .._recording import Recording, is_activation
from .._rule import Found, Rule

_LAYERS = {"linear", "conv1d", "conv2d", "conv3d", "matmul", "addmm", "mm"}


class Head(Rule):
    """Selects the input of the last classification layer: VCReg1, the vanilla form (section 3.1).

    One site a classifier: 1, and 2 on distilled models.
    """

    def find(self, recording: Recording) -> list[Found]:
        """Return the inputs of the last layers with a weight before the model's output."""
        found: list[Found] = []
        for layer in last_layers(recording)[0]:
            source = layer.args[0] if layer.args else layer.kwargs.get("input")
            if not isinstance(source, fx.Node):
                continue
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


def last_layers(recording: Recording) -> tuple[list[fx.Node], set[fx.Node]]:
    """Walk back from the model's output to the nearest layers with a weight.

    **Returns:** those layers, in order, and the nodes between them and the output.
    """
    outputs = [(path, node) for path, node in recording.root.outputs if is_activation(node)]
    logits = [(path, node) for path, node in outputs if path[-1:] == ("logits",)]
    waiting = [node.meta["flat"] for _, node in logits or outputs]
    seen, layers = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if _has_weight(node):
            layers.add(node)
            continue
        fresh = [source for source in node.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    if any(_above(layer) & layers for layer in layers):
        return [], set()  # one feeds another: the walk went past the end of a headless model
    return sorted(layers, key=lambda node: int(node.meta["time"])), seen - layers


def _has_weight(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and operation(node.target) in _LAYERS
        and any(source.op == "get_attr" for source in node.all_input_nodes)
    )


def _above(node: fx.Node) -> set[fx.Node]:
    """Return every node that this one depends on."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            waiting.extend(source.all_input_nodes)
    return found
