"""Find the classification layers: the last layers with a weight before the model's output."""

from __future__ import annotations

from torch import fx

from .._node import called, is_activation, reached
from ..recording import Recording

_LAYERS = {
    "linear", "conv1d", "conv2d", "conv3d", "matmul", "addmm", "mm", "einsum", "tensordot", "inner",
    "cosine_similarity", "cdist", "bmm",
}  # fmt: skip
# What a classifier does to its input first: unit length for a cosine, and other views of it.
_PREPARATIONS = {"normalize", "t", "T", "mT", "transpose", "unsqueeze", "getitem", "expand"}
# A layer written out: a row of products or differences a class, then one number of each.
_ROWS = {"mul", "sub"}
_REDUCTIONS = {"sum", "mean", "norm", "vector_norm"}


def last_layers(recording: Recording) -> tuple[list[fx.Node], set[fx.Node]]:
    """Walk back from the model's output to the nearest layers with a weight.

    **Returns:** those layers, in order, and the nodes between them and the output.
    """
    if getattr(recording.model, "num_classes", None) == 0:  # timm's way to say: no head
        return [], set()
    outputs = [(path, node) for path, node in recording.root.outputs if is_activation(node)]
    logits = [(path, node) for path, node in outputs if path[-1:] == ("logits",)]
    layers = set()

    def sources(node: fx.Node) -> list[fx.Node]:
        if classified(recording, node) is None:
            return node.all_input_nodes
        layers.add(node)
        return []

    seen = reached((node.meta["flat"] for _, node in logits or outputs), sources)
    if not layers or any(_above(layer) & layers for layer in layers):
        return [], set()  # one feeds another: the walk went past the end of a headless model
    return sorted(layers, key=lambda node: int(node.meta["time"])), seen - layers


def classified(recording: Recording, node: fx.Node) -> fx.Node | None:
    """Return what a layer with a weight takes, as a node of the flat graph; None if it is none.

    The weight may be computed (weight norm, a cosine classifier's unit vectors): it depends on
    parameters, and not on the model's input. What is only prepared for the product, by scaling it
    to unit length or by another view, is taken as it was before.
    """
    if called(node) not in _LAYERS | _ROWS:
        return None
    sources = node.all_input_nodes
    if not any(source in recording.weights for source in sources):
        return None
    taken = next((s for s in sources if s not in recording.weights and is_activation(s)), None)
    if called(node) in _ROWS and not (taken and _is_written_out(node, taken)):
        return None
    if taken is None:
        return None
    is_layer = called(node) in {"linear", "conv1d", "conv2d", "conv3d"}
    return taken if is_layer and called(taken) != "normalize" else _prepared_from(taken)


def _is_written_out(node: fx.Node, taken: fx.Node) -> bool:
    """Whether each class has its row in this product, and its users make one number of a row."""
    if node.meta["val"].numel() <= taken.meta["val"].numel():
        return False  # a scale or a shift of what is there
    return any(called(user) in _REDUCTIONS for user in reached(node.users, lambda n: n.users))


def _prepared_from(node: fx.Node) -> fx.Node:
    while called(node) in _PREPARATIONS:
        source = node.all_input_nodes[0]
        if called(node) == "getitem" and not _adds_axes_only(node):
            break
        node = source
    return node


def _adds_axes_only(node: fx.Node) -> bool:
    index = node.args[1]
    items = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is Ellipsis or item == slice(None) for item in items)


def _above(node: fx.Node) -> set[fx.Node]:
    """Return every node that this one depends on."""
    return reached(node.all_input_nodes, lambda source: source.all_input_nodes)
