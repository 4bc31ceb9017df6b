"""Find the classification layers: the last layers with a weight before the model's output."""

from __future__ import annotations

from torch import fx

from ._operation import operation
from ._recording import Recording, is_activation

_LAYERS = {"linear", "conv1d", "conv2d", "conv3d", "matmul", "addmm", "mm"}


def last_layers(recording: Recording) -> tuple[list[fx.Node], set[fx.Node]]:
    """Walk back from the model's output to the nearest layers with a weight.

    **Returns:** those layers, in order, and the nodes between them and the output.
    """
    if getattr(recording.model, "num_classes", None) == 0:  # timm's way to say: no head
        return [], set()
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
    if not layers or any(_above(layer) & layers for layer in layers):
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
