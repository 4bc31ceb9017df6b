"""Find the classification layers: the last layers with a weight before the model's output."""

from __future__ import annotations

from torch import fx

from .._node import called, is_activation
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
    waiting = [node.meta["flat"] for _, node in logits or outputs]
    seen, layers = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if classified(recording, node) is not None:
            layers.add(node)
            continue
        fresh = [source for source in node.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
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
    if taken is None or called(node) in {"linear", "conv1d", "conv2d", "conv3d"}:
        return taken if taken is None or not _is_cosine(taken) else _prepared_from(taken)
    return _prepared_from(taken)


def _is_written_out(node: fx.Node, taken: fx.Node) -> bool:
    """Whether each class has its row in this product, and its users make one number of a row."""
    if node.meta["val"].numel() <= taken.meta["val"].numel():
        return False  # a scale or a shift of what is there
    waiting = list(node.users)
    for user in waiting:  # grows
        if called(user) in _REDUCTIONS:
            return True
        waiting += [after for after in user.users if after not in waiting]
    return False


def _is_cosine(node: fx.Node) -> bool:
    return called(node) == "normalize"


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
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            waiting.extend(source.all_input_nodes)
    return found
