"""Layers: which axes they carry along, and which they treat as channels."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import fx

from ._operations import Evidence, Link, Made, evidence, links, ndim_of

_CONVOLUTIONS = (
    *(f"conv{kind}{n}d" for kind in ("", "_transpose", "_tbc") for n in (1, 2, 3)),
    "torchvision::deform_conv2d",
)
_NORMALIZATIONS = (  # channels at axis 1
    "batch_norm", "instance_norm", "group_norm", "local_response_norm", "native_batch_norm",
    "sync_batch_norm",
)  # fmt: skip
_LAYER_NORMALIZATIONS = ("layer_norm", "native_layer_norm", "rms_norm")  # over the last axes
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_ATTENTION = "multi_head_attention_forward"


def _spatial(name: str) -> int:
    """How many of a layer's axes are spatial: 2 for ``conv2d``."""
    found = re.search(r"([123])d", name)
    return int(found.group(1)) if found else 2


links(*_CONVOLUTIONS, *_CELLS)(lambda made: made.in_order([0]))
links(*_CELLS, part="each")(lambda made: made.in_order([0]))
links("grid_sample")(lambda made: made.in_order([0, 1]))
links(_ATTENTION, part=(0,))(lambda made: made.in_order([0, 1]))
# Weights of normalizations do not align from the right.
links(*_NORMALIZATIONS, *_LAYER_NORMALIZATIONS, "prelu", "rrelu", "embedding")(Made.in_order)
links("linear", "bilinear")(lambda made: made.leading(made.source, 1))
evidence("linear", *_CELLS)(lambda made: made.last(made.source))
evidence(*_CELLS, *_RECURRENT, part="each")(lambda made: made.last(made.source))
evidence(_ATTENTION, part=(0,))(lambda made: made.last(made.source))
evidence("bilinear")(lambda made: made.last(*made.sources[:2]))
evidence("embedding")(lambda made: made.last())


@links("pool")
@links("pool", part=(0,))
def _pool(made: Made) -> Iterator[Link]:
    return made.in_order(range(made.ndim - _spatial(made.name)))


@links(*_RECURRENT, part=(0,))
def _recurrent(made: Made) -> Iterator[Link]:
    return made.in_order(range(made.ndim - 1 if ndim_of(made.source) == made.ndim else 0))


@links("scaled_dot_product_attention")
def _attention(made: Made) -> Iterator[Link]:
    yield from made.leading(made.source, 1)
    values = made.argument(2, "value")
    if isinstance(values, fx.Node) and ndim_of(values) == made.ndim:
        yield (made.node, made.ndim - 1), (values, ndim_of(values) - 1)


@evidence(*_CONVOLUTIONS)
def _convolution(made: Made) -> Iterator[Evidence]:
    for node in (made.node, made.source):
        if node is not None:
            yield (node, made.ndim - _spatial(made.name) - 1), "convolution"


@evidence(*_NORMALIZATIONS)
def _normalization(made: Made) -> Iterator[Evidence]:
    yield (made.node, 1), "normalization"


@evidence(*_LAYER_NORMALIZATIONS)
def _layer_normalization(made: Made) -> Iterator[Evidence]:
    normalized = made.argument(1, "normalized_shape")
    if isinstance(normalized, int) or len(normalized) == 1:
        yield (made.node, made.ndim - 1), "normalization"  # else over channels and places together
