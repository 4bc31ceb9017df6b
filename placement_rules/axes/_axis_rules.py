"""What each torch function does to axes: which it carries along, which it treats as channels."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from numbers import Integral
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx

from .._node import operation
from ._reshape import reshape_links

Axis = tuple[fx.Node, int]
Link = tuple[Axis, Axis]
Evidence = tuple[Axis, str]

_LAYER_NORMALIZATIONS = {"layer_norm", "native_layer_norm", "rms_norm"}  # over the last axes
_NORMALIZATIONS = {  # channels at axis 1
    "batch_norm", "instance_norm", "group_norm", "local_response_norm", "native_batch_norm",
    "sync_batch_norm",
}  # fmt: skip
# Their weights do not align from the right.
_WEIGHTED_BY_CHANNEL = {*_NORMALIZATIONS, *_LAYER_NORMALIZATIONS, "prelu", "rrelu"}
# Element by element, operands aligned from the right. A function that stands in no list here joins
# no axes: what it does is not known.
_ELEMENTWISE = {
    "abs", "absolute", "acos", "acosh", "add", "addcdiv", "addcmul", "alpha_dropout", "and",
    "angle", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "asin",
    "asinh", "atan", "atan2", "atanh", "bernoulli", "bfloat16", "bitwise_and", "bitwise_not",
    "bitwise_or", "bitwise_xor", "bool", "broadcast_to", "ceil", "celu", "clamp", "clamp_max",
    "clamp_min", "clip", "clone", "complex", "conj", "conj_physical", "contiguous", "copy",
    "copysign", "cos", "cosh", "cpu", "cuda", "data", "deg2rad", "detach", "digamma", "div",
    "divide", "double", "dropout", "dropout1d", "dropout2d", "dropout3d", "elu", "eq", "erf",
    "erfc", "erfinv", "exp", "exp2", "expand", "expand_as", "expm1", "feature_alpha_dropout",
    "feature_dropout", "fill", "fix", "float", "float_power", "floor", "floor_divide",
    "floordiv", "fmax", "fmin", "fmod", "frac", "ge", "gelu", "greater", "greater_equal", "gt",
    "half", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "heaviside", "hypot", "imag",
    "int", "invert", "isclose", "isfinite", "isinf", "isnan", "ldexp", "le", "leaky_relu",
    "lerp", "less", "less_equal", "lgamma", "log", "log10", "log1p", "log2", "logaddexp",
    "logaddexp2", "logical_and", "logical_not", "logical_or", "logical_xor", "logit",
    "logsigmoid", "long", "lt", "masked_fill", "max", "maximum", "min", "minimum", "mish",
    "mod", "mul", "multiply", "mvlgamma", "nan_to_num", "ne", "neg", "negative", "nextafter",
    "not_equal", "or", "polar", "polygamma", "pos", "positive", "pow", "rad2deg", "real",
    "reciprocal", "relu", "relu6", "remainder", "requires_grad", "resolve_conj", "resolve_neg",
    "round", "rsqrt", "rsub", "selu", "setitem", "sgn", "short", "sigmoid", "sign", "silu",
    "sin", "sinc", "sinh", "softplus", "softshrink", "softsign", "special_entr", "special_erf",
    "special_erfc", "special_erfinv", "special_exp2", "special_expit", "special_expm1",
    "special_gammaln", "special_log1p", "special_logit", "special_ndtr", "special_round",
    "special_sinc", "special_xlog1py", "special_xlogy", "sqrt", "square", "sub", "subtract",
    "swish", "tan", "tanh", "tanhshrink", "threshold", "to", "true_divide", "truediv", "trunc",
    "type", "type_as", "where", "xlogy", "xor",
}  # fmt: skip
# Along one axis or over places, but every axis stays what it was.
_ALONG_AXES = {
    "channel_shuffle", "cross", "cumprod", "cumsum", "cumulative_trapezoid", "diff", "flip",
    "fliplr", "flipud", "glu", "gradient", "gumbel_softmax", "index_add", "index_copy",
    "index_fill", "index_reduce", "index_select", "interpolate", "linalg_cross", "log_softmax",
    "logcumsumexp", "masked_scatter", "msort", "narrow", "native_channel_shuffle", "normalize",
    "pixel_shuffle", "pixel_unshuffle", "renorm", "roll", "scatter", "scatter_add",
    "scatter_reduce", "select_scatter", "slice_scatter", "softmax", "softmin", "sort", "tril",
    "triu", "upsample", "upsample_bilinear", "upsample_nearest",
}  # fmt: skip
_PARTS = {  # of the first argument, of as many axes
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "sort",
    "topk", "cummax", "cummin", "unsafe_chunk", "unsafe_split", "gradient",
}  # fmt: skip
# Of several results, each the first argument with one axis, or several, reduced.
_REDUCED_PARTS = {
    "max", "min", "kthvalue", "mode", "median", "nanmedian", "std_mean", "var_mean", "aminmax",
}  # fmt: skip
# Numbers are mixed along axes, which then hold frequencies or places; every other axis stays.
_TRANSFORMS = {"fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft"}
_TRANSFORMS_2D = {"fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"}
_PICKED = {"gather", "take_along_dim"}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_CELLS = {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
_ATTENTION = "multi_head_attention_forward"
# Whose other tensors say a type, or where to write.
_OF_FIRST = {"setitem", "type_as", "to", "expand_as", "broadcast_to"}


def axis_links(node: fx.Node) -> Iterator[Link]:
    """Yield pairs of axes that a function leaves the same: (axis of the output, of an input)."""
    if node.op != "call_function":
        return
    name = _name(node)
    if name == "leaf_of":
        yield from _tuple_element(node)
    elif isinstance(node.meta.get("val"), Tensor):
        if handler := _HANDLERS.get(name):
            yield from handler(node)
        elif name in _CONVOLUTIONS:
            yield from _axes_in_order(node, node.args[0], [0])
        elif "pool" in name:
            kept = _ndim(node) - _spatial(name)
            yield from _axes_in_order(node, _input(node), range(kept))
        elif name in _REDUCTIONS:
            yield from _reduction(node)
        elif name in _WEIGHTED_BY_CHANNEL | _ALONG_AXES:
            yield from _axes_in_order(node, _input(node), range(_ndim(node)))
        elif name in _ELEMENTWISE:
            yield from _broadcast(node)


def channel_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[Evidence]:
    """Yield axes that a function treats as channels, with the kind of the evidence.

    **Arguments:**

    - `weights`: the nodes that are parameters, or computed from these alone.
    """
    if node.op == "get_attr":
        wide = [axis for axis, size in enumerate(_shape(node)) if size > 1]
        if len(wide) == 1 and node.meta["val"].is_floating_point():  # a scale or bias per channel
            yield (node, wide[0]), "parameter"
    elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
        name = _name(node)
        if name in _CONVOLUTIONS:
            yield from _both(node, _ndim(node) - _spatial(name) - 1, "convolution")
        elif name in _NORMALIZATIONS:
            yield (node, 1), "normalization"
        elif evidence := _EVIDENCE.get(name):
            yield from evidence(node, weights)


def _layer_norm_evidence(node: fx.Node, _: set[fx.Node]) -> Iterator[Evidence]:
    normalized = _argument(node, 1, "normalized_shape")
    if isinstance(normalized, int) or len(normalized) == 1:
        yield (node, _ndim(node) - 1), "normalization"  # else over channels and locations together


def _linear_evidence(node: fx.Node, _: set[fx.Node]) -> Iterator[Evidence]:
    yield (node, _ndim(node) - 1), "linear layer"
    if (source := _input(node)) is not None:
        yield (source, _ndim(source) - 1), "linear layer"


def _embedding_evidence(node: fx.Node, _: set[fx.Node]) -> Iterator[Evidence]:
    yield (node, _ndim(node) - 1), "linear layer"


def _bilinear_evidence(node: fx.Node, _: set[fx.Node]) -> Iterator[Evidence]:
    for one in (node, *node.all_input_nodes[:2]):
        yield (one, _ndim(one) - 1), "linear layer"


def _comparison_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[Evidence]:
    """Features are compared with weights along the features' channels."""
    dim = -1 if _name(node) == "cdist" else _argument(node, 2, "dim")
    if len(node.all_input_nodes) == 2:
        for features, other in itertools.permutations(node.all_input_nodes):
            if other in weights and features not in weights:
                axis = 1 if dim is None else int(dim)
                yield (features, axis % _ndim(features)), "linear layer"


def _part_evidence(node: fx.Node, _: set[fx.Node]) -> Iterator[Evidence]:
    """Recurrent layers and attention take and make channels at the last axis."""
    whole = node.args[0]
    if not isinstance(whole, fx.Node) or whole.op != "call_function":
        return
    name, path = _name(whole), node.meta.get("leaf")
    if name in _RECURRENT | _CELLS or (name == _ATTENTION and path == (0,)):
        yield (node, _ndim(node) - 1), "linear layer"
        if (source := _input(whole)) is not None:
            yield (source, _ndim(source) - 1), "linear layer"


def _product_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[Evidence]:
    """A matrix of weights on one side mixes the channels of the other."""
    factors = [factor for factor in node.all_input_nodes if _ndim(factor) > 1][-2:]
    if len(factors) < 2:
        return
    left, right = factors
    if right in weights and left not in weights:
        yield (node, _ndim(node) - 1), "linear layer"
        yield (left, _ndim(left) - 1), "linear layer"
    elif left in weights and right not in weights:
        yield (node, _ndim(node) - 2), "linear layer"
        yield (right, _ndim(right) - 2), "linear layer"


def _einsum_letters(node: fx.Node) -> tuple[list[str], str] | None:
    """Return the letters of the operands' axes and of the output's; None for other forms.

    Those behind an ellipsis get letters of their own, aligned from the right.
    """
    equation, given = node.args[0], _einsum_operands(node)
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(given):
        return None
    spare = [letter for letter in ascii_letters if letter not in equation]
    hidden = [
        _ndim(operand) - len(letters.replace("...", "")) if "..." in letters else 0
        for letters, operand in zip(operands, given, strict=True)
    ]
    if min(hidden) < 0 or max(hidden) > len(spare):
        return None
    dots = "".join(spare[: max(hidden)])
    if not arrow:
        seen = Counter(letter for letter in left if letter.isalpha())
        right = dots + "".join(sorted(letter for letter, times in seen.items() if times == 1))
    operands = [
        letters.replace("...", dots[len(dots) - count :])
        for letters, count in zip(operands, hidden, strict=True)
    ]
    fits = all(
        len(set(letters)) == len(letters) == _ndim(operand)
        for letters, operand in zip(operands, given, strict=True)
    )
    return (operands, right.replace("...", dots)) if fits else None


def _einsum_operands(node: fx.Node) -> list[fx.Node]:
    given: Any = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = given[0]
    return [operand for operand in given if isinstance(operand, fx.Node)]


def _einsum(node: fx.Node) -> Iterator[Link]:
    if (found := _einsum_letters(node)) is not None:
        for letters, operand in zip(found[0], _einsum_operands(node), strict=True):
            for axis, letter in enumerate(letters):
                alike = (
                    letter in found[1]
                    and _shape(operand)[axis] == (_shape(node)[found[1].index(letter)])
                )  # an axis of size one may stand for one of any size
                if alike:
                    yield (node, found[1].index(letter)), (operand, axis)


def _einsum_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[Evidence]:
    """What is summed over, of an activation and a weight, are the activation's channels."""
    operands = _einsum_operands(node)
    if len(operands) != 2 or (found := _einsum_letters(node)) is None:
        return
    for here, there in ((0, 1), (1, 0)):
        if operands[there] in weights and operands[here] not in weights:
            summed = [c for c in found[0][here] if c in found[0][there] and c not in found[1]]
            made = [c for c in found[0][there] if c not in found[0][here] and c in found[1]]
            if len(summed) == 1:
                yield (operands[here], found[0][here].index(summed[0])), "linear layer"
            if len(made) == 1:
                yield (node, found[1].index(made[0])), "linear layer"


def _both(node: fx.Node, axis: int, kind: str) -> Iterator[Evidence]:
    yield (node, axis), kind
    if (source := _input(node)) is not None:
        yield (source, axis), kind


# Functions ---------------------------------------------------------------------------------


def _broadcast(node: fx.Node) -> Iterator[Link]:
    """Element by element: axes are aligned from the right."""
    ndim, shape = _ndim(node), _shape(node)
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    for source in sources[:1] if _name(node) in _OF_FIRST else sources:
        offset = ndim - _ndim(source)
        for axis, size in enumerate(_shape(source)):
            if offset + axis >= 0 and size == shape[offset + axis]:
                yield (node, offset + axis), (source, axis)


def _axes_in_order(node: fx.Node, source: Any, axes: Any) -> Iterator[Link]:
    """The first axes of a function's input are those of its output; some may change their size."""
    if isinstance(source, fx.Node):
        for axis in axes:
            if axis < min(_ndim(node), _ndim(source)):
                yield (node, axis), (source, axis)


def _permute(node: fx.Node) -> Iterator[Link]:
    source = _input(node)
    order = _numbers(node, "dims")
    for axis, old in enumerate(order):
        yield (node, axis), (source, old % len(order))


def _transpose(node: fx.Node) -> Iterator[Link]:
    source, ndim = _input(node), _ndim(node)
    name = _name(node)
    if name in {"mT", "mH", "adjoint"}:
        first, second = ndim - 2, ndim - 1
    elif name in {"T", "t", "H"}:
        yield from (((node, axis), (source, ndim - 1 - axis)) for axis in range(ndim))
        return
    else:
        first = _argument(node, 1, "dim0", "axis0") % ndim
        second = _argument(node, 2, "dim1", "axis1") % ndim
    swap = {first: second, second: first}
    for axis in range(ndim):
        yield (node, axis), (source, swap.get(axis, axis))


def _movedim(node: fx.Node) -> Iterator[Link]:
    source, ndim = _input(node), _ndim(node)
    old, new = _argument(node, 1, "source"), _argument(node, 2, "destination")
    pairs = [(old, new)] if isinstance(old, int) else list(zip(old, new, strict=True))
    moved = {to % ndim: frm % ndim for frm, to in pairs}
    rest = iter(axis for axis in range(ndim) if axis not in moved.values())
    for axis in range(ndim):
        yield (node, axis), (source, moved[axis] if axis in moved else next(rest))


def _reshape(node: fx.Node) -> Iterator[Link]:
    source = _input(node)
    for here, there in reshape_links(_shape(node), _shape(source)):
        yield (node, here), (source, there)


def _squeeze(node: fx.Node) -> Iterator[Link]:
    """Drop or add axes of size one; every other axis keeps its order."""
    source = _input(node)
    if _name(node) == "unsqueeze":
        new = _argument(node, 1, "dim") % _ndim(node)
        kept = [axis for axis in range(_ndim(node)) if axis != new]
        yield from (((node, axis), (source, old)) for old, axis in enumerate(kept))
    else:
        yield from _reshape(node)


def _reduction(node: fx.Node) -> Iterator[Link]:
    source, name = _input(node), _name(node)
    yield from _reduced(node, source, _argument(node, _DIM_AT.get(name, 1), "dim", "axis"))


def _reduced(node: fx.Node, source: Any, dims: Any) -> Iterator[Link]:
    """Axes are gone, or have the size one; every other axis keeps its order."""
    given = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    if source is None or not isinstance(given, (tuple, list)):  # None, and std(False): all axes
        return
    if not given or not all(isinstance(dim, int) for dim in given):
        return
    gone = {dim % _ndim(source) for dim in given}
    kept = [axis for axis in range(_ndim(source)) if axis not in gone]
    if _ndim(node) == _ndim(source):  # keepdim
        yield from (((node, axis), (source, axis)) for axis in kept)
    elif len(kept) == _ndim(node):
        yield from (((node, axis), (source, old)) for axis, old in enumerate(kept))


def _quantile(node: fx.Node) -> Iterator[Link]:
    """Several quantiles stand along a new first axis."""
    q = _argument(node, 1, "q")
    new = 1 if isinstance(q, fx.Node) and _ndim(q) == 1 else 0
    source, dim = _input(node), _argument(node, 2, "dim")
    if source is None or not isinstance(dim, int):
        return
    kept = [axis for axis in range(_ndim(source)) if axis != dim % _ndim(source)]
    if _ndim(node) == _ndim(source) + new:
        yield from (((node, axis + new), (source, axis)) for axis in kept)
    elif _ndim(node) == len(kept) + new:
        yield from (((node, new + here), (source, axis)) for here, axis in enumerate(kept))


def _similarity(node: fx.Node) -> Iterator[Link]:
    """Two tensors are compared along an axis of both, which is gone."""
    dim = _argument(node, 2, "dim")
    sources = [source for source in node.all_input_nodes if _ndim(source) == _ndim(node) + 1]
    for source in sources:
        axis = (1 if dim is None else int(dim)) % _ndim(source)
        kept = [old for old in range(_ndim(source)) if old != axis]
        for here, old in enumerate(kept):
            if _shape(node)[here] == _shape(source)[old]:
                yield (node, here), (source, old)


def _trapezoid(node: fx.Node) -> Iterator[Link]:
    dim = node.kwargs.get("dim", -1)
    yield from _reduced(node, _input(node), dim)


def _transform(node: fx.Node) -> Iterator[Link]:
    source, name = _input(node), _name(node)
    if source is None:
        return
    dims: Any = (-2, -1)
    if name in _TRANSFORMS:
        dims = _argument(node, 2, "dim")
        dims = (-1 if dims is None else dims,)
    elif (given := _argument(node, 2, "dim")) is not None:
        dims = (given,) if isinstance(given, int) else given
    gone = {dim % _ndim(source) for dim in dims}
    kept = [axis for axis in range(_ndim(source)) if axis not in gone]
    yield from _axes_in_order(node, source, kept)


def _picked(node: fx.Node) -> Iterator[Link]:
    """Which one is taken along an axis may differ from place to place; all others stay."""
    source, dim = _input(node), _argument(node, 1, "dim")
    if _name(node) == "take_along_dim":
        dim = _argument(node, 2, "dim")
    if source is not None and isinstance(dim, int) and _ndim(source) == _ndim(node):
        kept = [axis for axis in range(_ndim(node)) if axis != dim % _ndim(node)]
        yield from _axes_in_order(node, source, kept)


def _windows(node: fx.Node) -> Iterator[Link]:
    """``Tensor.unfold`` adds a last axis; ``F.unfold`` mixes channels and places."""
    source = _input(node)
    if source is not None:
        kept = [0] if node.target is torch.nn.functional.unfold else range(_ndim(source))
        yield from _axes_in_order(node, source, kept)


def _repeated(node: fx.Node) -> Iterator[Link]:
    """``repeat_interleave`` along an axis; without one, everything is flattened."""
    source = _input(node)
    if isinstance(_argument(node, 2, "dim"), int) and source is not None:
        yield from _axes_in_order(node, source, range(_ndim(node)))


def _tiled(node: fx.Node) -> Iterator[Link]:
    """``repeat`` and ``tile``: aligned from the right, each axis that often."""
    source = _input(node)
    if source is not None and (offset := _ndim(node) - _ndim(source)) >= 0:
        for axis in range(_ndim(source)):
            yield (node, offset + axis), (source, axis)


def _sampled(node: fx.Node) -> Iterator[Link]:
    """``grid_sample``: batch and channels stay, places are new."""
    yield from _axes_in_order(node, _input(node), (0, 1))


def _tensordot(node: fx.Node) -> Iterator[Link]:
    left, right = [*node.all_input_nodes, None, None][:2]
    if left is None or right is None:
        return
    pair = _tensordot_axes(node, left, right)
    if pair is None:
        return
    kept = [(left, a) for a in range(_ndim(left)) if a not in pair[0]]
    kept += [(right, a) for a in range(_ndim(right)) if a not in pair[1]]
    if len(kept) == _ndim(node):
        yield from (((node, axis), old) for axis, old in enumerate(kept))


def _tensordot_axes(
    node: fx.Node, left: fx.Node, right: fx.Node
) -> tuple[list[int], list[int]] | None:
    """Return which axes of the two factors are summed over."""
    dims = _argument(node, 2, "dims")
    dims = 2 if dims is None else dims
    if isinstance(dims, int):
        ndim = _ndim(left)
        return list(range(ndim - dims, ndim)), list(range(dims))
    if not isinstance(dims, (tuple, list)) or len(dims) != 2:
        return None
    mine, theirs = ([d] if isinstance(d, int) else list(d) for d in dims)
    return [d % _ndim(left) for d in mine], [d % _ndim(right) for d in theirs]


def _cell(node: fx.Node) -> Iterator[Link]:
    yield from _axes_in_order(node, _input(node), (0,))


def _baddbmm(node: fx.Node) -> Iterator[Link]:
    """A product of the second and third tensor, to which the first is added."""
    factors = [_argument(node, 1, "batch1", "mat1"), _argument(node, 2, "batch2", "mat2")]
    if all(isinstance(factor, fx.Node) for factor in factors):
        yield from _product_links(node, *factors)


def _select(node: fx.Node) -> Iterator[Link]:
    source, dim = _input(node), _argument(node, 1, "dim")
    if source is not None and isinstance(dim, int):
        kept = [axis for axis in range(_ndim(source)) if axis != dim % _ndim(source)]
        yield from (((node, axis), (source, old)) for axis, old in enumerate(kept))


def _complex_pairs(node: fx.Node) -> Iterator[Link]:
    """Pairs of numbers along a last axis become complex numbers, or the other way round."""
    source = _input(node)
    if source is not None:
        yield from _axes_in_order(node, source, range(min(_ndim(node), _ndim(source))))


def _same_axes(node: fx.Node) -> Iterator[Link]:
    """Concatenations and paddings: an axis that grows still holds what it held."""
    for source in node.all_input_nodes:
        if _ndim(source) == _ndim(node):
            yield from _axes_in_order(node, source, range(_ndim(node)))


def _stack(node: fx.Node) -> Iterator[Link]:
    new = (_argument(node, 1, "dim", "axis") or 0) % _ndim(node)
    kept = [axis for axis in range(_ndim(node)) if axis != new]
    for source in node.all_input_nodes:
        yield from (((node, axis), (source, old)) for old, axis in enumerate(kept))


def _tuple_element(node: fx.Node) -> Iterator[Link]:
    """One tensor of a function that returns several."""
    whole = node.args[0]
    if not isinstance(whole, fx.Node) or whole.op != "call_function":
        return
    source = _input(whole)
    if source is None:
        return
    name = _name(whole)
    if name == "unbind":
        dim = (_argument(whole, 1, "dim") or 0) % _ndim(source)
        kept = [axis for axis in range(_ndim(source)) if axis != dim]
        yield from (((node, axis), (source, old)) for axis, old in enumerate(kept))
    elif name == _ATTENTION:
        if node.meta.get("leaf") == (0,):
            yield from _axes_in_order(node, source, (0, 1))
    elif name in _RECURRENT:
        if node.meta.get("leaf") == (0,) and _ndim(source) == _ndim(node):
            yield from _axes_in_order(node, source, range(_ndim(node) - 1))
    elif name in _CELLS:
        yield from _axes_in_order(node, source, (0,))
    elif name in _REDUCED_PARTS:
        at = 2 if name == "kthvalue" else 1
        dim = _argument(whole, at, "dim", "axis")
        yield from _reduced(
            node, source, -1 if dim is None and name in {"mode", "kthvalue"} else dim
        )
    elif "pool" in name and node.meta.get("leaf") == (0,):  # with indices
        yield from _axes_in_order(node, source, range(_ndim(node) - _spatial(name)))
    elif name in _PARTS and _ndim(source) == _ndim(node):
        yield from _axes_in_order(node, source, range(_ndim(node)))


def _matmul(node: fx.Node) -> Iterator[Link]:
    left, right = [*node.all_input_nodes, None, None][:2]
    if left is not None and right is not None:
        yield from _product_links(node, left, right)


def _product_links(node: fx.Node, left: fx.Node, right: fx.Node) -> Iterator[Link]:
    if min(_ndim(left), _ndim(right)) < 2:
        return
    ndim = _ndim(node)
    yield (node, ndim - 2), (left, _ndim(left) - 2)
    yield (node, ndim - 1), (right, _ndim(right) - 1)
    yield from _leading(node, left)
    yield from _leading(node, right)


def _linear(node: fx.Node) -> Iterator[Link]:
    yield from _leading(node, _input(node), 1)


def _attention(node: fx.Node) -> Iterator[Link]:
    values = _argument(node, 2, "value")
    yield from _leading(node, _input(node), 1)
    if isinstance(values, fx.Node) and _ndim(values) == _ndim(node):
        yield (node, _ndim(node) - 1), (values, _ndim(values) - 1)


def _leading(node: fx.Node, source: fx.Node | None, last: int = 2) -> Iterator[Link]:
    if source is not None and _ndim(source) == _ndim(node):
        for axis in range(_ndim(node) - last):
            if _shape(source)[axis] == _shape(node)[axis]:
                yield (node, axis), (source, axis)


def _embedding(node: fx.Node) -> Iterator[Link]:
    yield from _axes_in_order(node, _input(node), range(_ndim(node) - 1))


def _getitem(node: fx.Node) -> Iterator[Link]:
    source = node.args[0]
    index = node.args[1]
    if not isinstance(source, fx.Node):
        return
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(_is_plain_index(item) for item in items):
        return  # indexing by a tensor, a list, an array, a truth value
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    place = items.index(Ellipsis)
    items[place : place + 1] = [slice(None)] * (_ndim(source) - used)
    new = old = 0
    for item in items:
        if isinstance(item, slice):
            yield (node, new), (source, old)  # a part of the channels still holds channels
            new, old = new + 1, old + 1
        elif item is None:
            new += 1
        else:
            old += 1


def _is_plain_index(item: Any) -> bool:
    if item is None or item is Ellipsis or isinstance(item, slice):
        return True
    return isinstance(item, Integral) and not isinstance(item, bool)


_CONVOLUTIONS = {
    f"conv{kind}{n}d" for kind in ("", "_transpose", "_tbc") for n in (1, 2, 3)
} | {"torchvision::deform_conv2d"}  # fmt: skip
_REDUCTIONS = {
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "linalg_norm",
    "linalg_vector_norm", "logsumexp", "mean", "median", "nanmean", "nansum", "norm", "prod",
    "special_logsumexp", "std", "sum", "var", "vector_norm",
}  # fmt: skip
_DIM_AT = dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm", "linalg_norm"), 2)
_HANDLERS: dict[str, Callable[[fx.Node], Iterator[Link]]] = {
    **dict.fromkeys(("permute",), _permute),
    **dict.fromkeys(
        ("transpose", "swapaxes", "swapdims", "mT", "mH", "adjoint", "T", "t", "H"), _transpose
    ),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    **dict.fromkeys(
        ("reshape", "view", "flatten", "unflatten", "ravel", "reshape_as", "view_as"), _reshape
    ),
    **dict.fromkeys(("squeeze", "unsqueeze"), _squeeze),
    **dict.fromkeys(("cat", "concat", "concatenate", "pad"), _same_axes),
    "stack": _stack,
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "einsum": _einsum,
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    "getitem": _getitem,
    "select": _select,
    **dict.fromkeys(("view_as_complex", "view_as_real"), _complex_pairs),
    **dict.fromkeys(("quantile", "nanquantile"), _quantile),
    **dict.fromkeys(("cosine_similarity", "pairwise_distance"), _similarity),
    **dict.fromkeys(("trapezoid", "trapz"), _trapezoid),
    **dict.fromkeys((*_TRANSFORMS, *_TRANSFORMS_2D), _transform),
    **dict.fromkeys(_PICKED, _picked),
    "unfold": _windows,
    "repeat_interleave": _repeated,
    **dict.fromkeys(("repeat", "tile"), _tiled),
    "grid_sample": _sampled,
    "tensordot": _tensordot,
    "bilinear": _linear,
    "baddbmm": _baddbmm,
    "addmm": _baddbmm,
    **dict.fromkeys(_CELLS, _cell),
}

_EVIDENCE: dict[str, Callable[[fx.Node, set[fx.Node]], Iterator[Evidence]]] = {
    **dict.fromkeys(_LAYER_NORMALIZATIONS, _layer_norm_evidence),
    **dict.fromkeys(("linear", *_CELLS), _linear_evidence),
    "embedding": _embedding_evidence,
    "bilinear": _bilinear_evidence,
    "leaf_of": _part_evidence,
    **dict.fromkeys(("matmul", "mm", "addmm", "bmm", "baddbmm"), _product_evidence),
    "einsum": _einsum_evidence,
    **dict.fromkeys(("cosine_similarity", "cdist"), _comparison_evidence),
}

# Reading nodes -----------------------------------------------------------------------------


def _name(node: fx.Node) -> str:
    return operation(node.target) if callable(node.target) else str(node.target)


def _shape(node: fx.Node) -> tuple[int, ...]:
    tensor = node.meta.get("val")
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else ()


def _ndim(node: fx.Node) -> int:
    return len(_shape(node))


def _input(node: fx.Node) -> Any:
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("query"))
    return first if isinstance(first, fx.Node) else None


def _argument(node: fx.Node, index: int, *names: str) -> Any:
    if len(node.args) > index:
        return node.args[index]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def _numbers(node: fx.Node, name: str) -> list[int]:
    """Read ``permute(0, 2, 1)`` as well as ``permute((0, 2, 1))`` and ``permute(dims=…)``."""
    given: Any = node.kwargs.get(name, node.args[1:])
    if len(given) == 1 and not isinstance(given[0], int):
        given = given[0]
    return [int(number) for number in given]


def _spatial(name: str) -> int:
    """How many of a layer's axes are spatial: 2 for ``conv2d``."""
    found = re.search(r"([123])d", name)
    return int(found.group(1)) if found else 2
