"""Layers and products: which axes they carry along, and which they treat as channels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from string import ascii_letters
from typing import Any

from torch import fx

from ._operations import LINEAR, Evidence, Link, Made, evidence, links, ndim_of, shape_of

# Layers --------------------------------------------------------------------------------------

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


# Products ------------------------------------------------------------------------------------


@links("matmul", "bmm", "mm")
def _matmul(made: Made) -> Iterator[Link]:
    return _product(made, *made.sources[:2]) if len(made.sources) > 1 else iter(())


@links("baddbmm", "addmm")
def _added_product(made: Made) -> Iterator[Link]:
    """A product of the second and third tensor, to which the first is added."""
    factors = [made.argument(1, "batch1", "mat1"), made.argument(2, "batch2", "mat2")]
    if all(isinstance(factor, fx.Node) for factor in factors):
        yield from _product(made, *factors)


def _product(made: Made, left: fx.Node, right: fx.Node) -> Iterator[Link]:
    if min(ndim_of(left), ndim_of(right)) < 2:
        return
    yield (made.node, made.ndim - 2), (left, ndim_of(left) - 2)
    yield (made.node, made.ndim - 1), (right, ndim_of(right) - 1)
    for factor in (left, right):
        yield from made.leading(factor, 2)


@evidence("matmul", "mm", "addmm", "bmm", "baddbmm")
def _product_with_weights(made: Made) -> Iterator[Evidence]:
    """A matrix of weights on one side mixes the channels of the other."""
    factors = [factor for factor in made.sources if ndim_of(factor) > 1][-2:]
    if len(factors) < 2:
        return
    left, right = factors
    if right in made.weights and left not in made.weights:
        yield from made.last(left)
    elif left in made.weights and right not in made.weights:
        yield (made.node, made.ndim - 2), LINEAR
        yield (right, ndim_of(right) - 2), LINEAR


@links("tensordot")
def _tensordot(made: Made) -> Iterator[Link]:
    if len(made.sources) != 2:
        return
    left, right = made.sources
    if (pair := _tensordot_axes(made.argument(2, "dims"), left, right)) is not None:
        kept = [(left, a) for a in range(ndim_of(left)) if a not in pair[0]]
        kept += [(right, a) for a in range(ndim_of(right)) if a not in pair[1]]
        if len(kept) == made.ndim:
            yield from (((made.node, axis), old) for axis, old in enumerate(kept))


def _tensordot_axes(dims: Any, left: fx.Node, right: fx.Node) -> tuple[list[int], list[int]] | None:
    """Return which axes of the two factors are summed over."""
    dims = 2 if dims is None else dims
    if isinstance(dims, int):
        ndim = ndim_of(left)
        return list(range(ndim - dims, ndim)), list(range(dims))
    if not isinstance(dims, (tuple, list)) or len(dims) != 2:
        return None
    mine, theirs = ([d] if isinstance(d, int) else list(d) for d in dims)
    return [d % ndim_of(left) for d in mine], [d % ndim_of(right) for d in theirs]


@links("einsum")
def _einsum(made: Made) -> Iterator[Link]:
    operands, letters, result = _einsum_letters(made)
    for operand, axes in zip(operands, letters, strict=True):
        for axis, letter in enumerate(axes):
            here = result.find(letter)
            # an axis of size one may stand for one of any size
            if here >= 0 and shape_of(operand)[axis] == made.shape[here]:
                yield (made.node, here), (operand, axis)


@evidence("einsum")
def _einsum_with_weights(made: Made) -> Iterator[Evidence]:
    """What is summed over, of an activation and a weight, are the activation's channels."""
    operands, letters, result = _einsum_letters(made)
    if len(operands) != 2:
        return
    for here, there in ((0, 1), (1, 0)):
        if operands[there] in made.weights and operands[here] not in made.weights:
            mine, theirs = letters[here], letters[there]
            summed = [c for c in mine if c in theirs and c not in result]
            new = [c for c in theirs if c not in mine and c in result]
            if len(summed) == 1:
                yield (operands[here], mine.index(summed[0])), LINEAR
            if len(new) == 1:
                yield (made.node, result.index(new[0])), LINEAR


def _einsum_letters(made: Made) -> tuple[list[fx.Node], list[str], str]:
    """Return the operands, the letters of their axes, and those of the result's.

    Those behind an ellipsis get letters of their own, aligned from the right. Nothing is returned
    for other forms than an equation without repeated letters.
    """
    nothing: tuple[list[fx.Node], list[str], str] = [], [], ""
    equation, *given = made.call.args
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = list(given[0])
    operands = [operand for operand in given if isinstance(operand, fx.Node)]
    if not isinstance(equation, str):
        return nothing
    left, arrow, right = equation.replace(" ", "").partition("->")
    letters = left.split(",")
    if len(letters) != len(operands):
        return nothing
    spare = [letter for letter in ascii_letters if letter not in equation]
    hidden = [
        ndim_of(operand) - len(axes.replace("...", "")) if "..." in axes else 0
        for axes, operand in zip(letters, operands, strict=True)
    ]
    if min(hidden) < 0 or max(hidden) > len(spare):
        return nothing
    dots = "".join(spare[: max(hidden)])
    if not arrow:
        seen = Counter(letter for letter in left if letter.isalpha())
        right = dots + "".join(sorted(letter for letter, times in seen.items() if times == 1))
    letters = [
        axes.replace("...", dots[len(dots) - count :])
        for axes, count in zip(letters, hidden, strict=True)
    ]
    fits = all(
        len(set(axes)) == len(axes) == ndim_of(operand)
        for axes, operand in zip(letters, operands, strict=True)
    )
    return (operands, letters, right.replace("...", dots)) if fits else nothing
