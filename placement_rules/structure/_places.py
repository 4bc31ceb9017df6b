"""Which places of the model's arguments the places of a site's tensor are.

An axis of a site's tensor is that of an argument if every function between them leaves its entries
where they are. So the token numbers of a text model and the outputs of its blocks share two axes,
and those of an image and of the blocks of a ViT share one, the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from .._node import called, value
from ..axes import Layout, UnionFind, axis_links
from ..recording import Recording
from ._merges import CONCATENATIONS

_MOVES = {  # entries along an axis that they leave as long as it was
    "flip", "fliplr", "flipud", "roll", "sort", "msort", "gather", "take_along_dim", "topk", "mode",
    "index_select", "index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce",
    "channel_shuffle", "native_channel_shuffle", "rot90", "masked_scatter", "interpolate",
    "upsample", "upsample_bilinear", "upsample_nearest", "grid_sample", "argsort", "kthvalue",
    "lstm", "gru", "rnn_tanh", "rnn_relu",  # whose packed sequences are sorted
}  # fmt: skip


@dataclass(frozen=True)
class Places:
    """What is certain of the sample axes of a site.

    **Attributes:**

    - `arguments`: name of an argument of the model → which axes of the site's tensor are the
      argument's first and second; None for those that are not certain.
    - `tokens`: the axes along which a parameter was put beside other entries, as class tokens are.
    """

    arguments: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()


def places_of(recording: Recording, nodes: Sequence[fx.Node], layout: Layout) -> Places:
    """Return what is certain of a site's sample axes, in all of its calls.

    **Arguments:**

    - `nodes`: the site's tensor in each call of its module.
    - `layout`: its layout.
    """
    found = [_in_call(recording, node, layout) for node in nodes]
    if not found:
        return Places()
    arguments = {}
    for name in found[0].arguments:
        pairs = {call.arguments[name] for call in found}
        arguments[name] = pairs.pop() if len(pairs) == 1 else (None, None)
    tokens = {call.tokens for call in found}
    return Places(arguments, tokens.pop() if len(tokens) == 1 else ())


def arguments_of(recording: Recording) -> dict[str, fx.Node]:
    """Return the tensors that the model was given in the recording, by the names of arguments."""
    names = list(inspect.signature(recording.root.module.forward).parameters)
    found = {}
    for path, node in recording.root.inputs:
        name = names[path[0]] if isinstance(path[0], int) and path[0] < len(names) else path[0]
        if len(path) == 1 and isinstance(node.meta.get("val"), Tensor):
            found[str(name)] = node
    return found


def _in_call(recording: Recording, node: fx.Node, layout: Layout) -> Places:
    axes, flat = recording.once(_PlaceAxes), node.meta["flat"]
    here = {axis: axes.find((flat, axis)) for axis in layout.sample_axes}

    def same(source: fx.Node, axis: int) -> int | None:
        if axis >= value(source).ndim:
            return None
        root = axes.find((source.meta["flat"], axis))
        alike = [place for place, found in here.items() if found == root]
        return alike[0] if len(alike) == 1 else None

    arguments = {
        name: (same(source, 0), same(source, 1)) for name, source in arguments_of(recording).items()
    }
    return Places(arguments, tuple(axis for axis, root in here.items() if root in axes.lengthened))


class _PlaceAxes(UnionFind):
    """Classes of axes whose entries stay in their places; those along which tokens were put."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        for node in recording.flat.nodes:
            for (to, new), (source, old) in () if called(node) in _MOVES else axis_links(node):
                if value(to).shape[new] == value(source).shape[old]:
                    self.join((to, new), (source, old))
        self.lengthened = {
            self.find((node, _dim_of(node) % value(node).ndim))
            for node in recording.flat.nodes
            if called(node) in CONCATENATIONS
            and node not in recording.weights
            and any(source in recording.weights for source in node.all_input_nodes)
        }


def _dim_of(concatenation: fx.Node) -> Any:
    args, kwargs = concatenation.args, concatenation.kwargs
    return kwargs.get("dim", kwargs.get("axis", args[1] if args[1:] else 0))
