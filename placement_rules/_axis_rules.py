"""What each torch function does to axes: which it carries along, which it treats as channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx

from ._operation import operation
from ._reshape import reshape_links

Axis = tuple[fx.Node, int]
Link = tuple[Axis, Axis]

_LAYER_NORMALIZATIONS = {"layer_norm", "native_layer_norm", "rms_norm"}  # over the last axes
_NORMALIZATIONS = {  # channels at axis 1
    "batch_norm", "instance_norm", "group_norm", "local_response_norm", "native_batch_norm",
    "sync_batch_norm",
}  # fmt: skip
_WEIGHTED_BY_CHANNEL = {*_NORMALIZATIONS, *_LAYER_NORMALIZATIONS, "prelu", "rrelu"}
# Element by element, operands aligned from the right. A function that stands in no list here joins
# no axes: what it does is not known.
_ELEMENTWISE = {
    "abs", "absolute", "acos", "acosh", "add", "addcdiv", "addcmul", "alpha_dropout", "and", "angle",
    "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "asin", "asinh",
    "atan", "atan2", "atanh", "bernoulli", "bfloat16", "bitwise_and", "bitwise_not", "bitwise_or",
    "bitwise_xor", "bool", "broadcast_to", "ceil", "celu", "clamp", "clamp_max", "clamp_min", "clip",
    "clone", "conj", "contiguous", "copy", "copysign", "cos", "cosh", "cpu", "cuda", "data",
    "deg2rad", "detach", "digamma", "div", "divide", "double", "dropout", "dropout1d", "dropout2d",
    "dropout3d", "elu", "eq", "erf", "erfc", "erfinv", "exp", "exp2", "expand", "expand_as", "expm1",
    "feature_alpha_dropout", "feature_dropout", "fill", "fix", "float", "float_power", "floor",
    "floor_divide", "floordiv", "fmax", "fmin", "fmod", "frac", "ge", "gelu", "greater",
    "greater_equal", "gt", "half", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "heaviside",
    "hypot", "imag", "int", "invert", "isclose", "isfinite", "isinf", "isnan", "ldexp", "le",
    "leaky_relu", "lerp", "less", "less_equal", "lgamma", "log", "log10", "log1p", "log2",
    "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "logit", "logsigmoid",
    "long", "lt", "masked_fill", "max", "maximum", "min", "minimum", "mish", "mod", "mul",
    "multiply", "mvlgamma", "nan_to_num", "ne", "neg", "negative", "not_equal", "or",
    "pos", "positive", "pow", "polygamma", "rad2deg", "real", "reciprocal", "relu", "relu6",
    "remainder", "requires_grad", "round", "rsqrt", "rsub", "selu", "setitem", "sgn", "short",
    "sigmoid", "sign", "silu", "sin", "sinc", "sinh", "softplus", "softshrink", "softsign", "sqrt",
    "square", "sub", "subtract", "swish", "tan", "tanh", "tanhshrink", "threshold", "to",
    "true_divide", "truediv", "trunc", "type", "type_as", "where", "xlogy",
    "xor",
}  # fmt: skip
# Along one axis or over places, but every axis stays what it was.
_ALONG_AXES = {
    "softmax", "softmin", "log_softmax", "gumbel_softmax", "normalize", "renorm", "cumsum",
    "cumprod", "logcumsumexp", "flip", "fliplr", "flipud", "roll", "tril", "triu", "interpolate",
    "upsample", "upsample_nearest", "upsample_bilinear", "narrow", "sort", "glu",
}  # fmt: skip
_PARTS = {  # of the first argument, of as many axes
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "sort",
    "topk", "cummax", "cummin", "max", "min", "kthvalue", "mode", "median", "unsafe_chunk",
    "unsafe_split",
}  # fmt: skip


def axis_links(node: fx.Node) -> Iterator[Link]:
    """Yield pairs of axes that a function leaves the same: (axis of the output, of an input)."""
    if node.op != "call_function" or _is_foreign(node):
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
        elif name in _WEIGHTED_BY_CHANNEL:  # their weights do not align from the right
            yield from _axes_in_order(node, _input(node), range(_ndim(node)))
        elif name in _ALONG_AXES:
            yield from _axes_in_order(node, _input(node), range(_ndim(node)))
        elif name in _ELEMENTWISE:
            yield from _broadcast(node)


def channel_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[tuple[Axis, str]]:
    """Yield axes that a function treats as channels, with the kind of the evidence.

    **Arguments:**

    - `weights`: the nodes that are parameters, or computed from these alone.
    """
    if node.op == "get_attr":
        wide = [axis for axis, size in enumerate(_shape(node)) if size > 1]
        if len(wide) == 1 and node.meta["val"].is_floating_point():  # a scale or bias per channel
            yield (node, wide[0]), "parameter"
    elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
        name, source = _name(node), _input(node)
        last = _ndim(node) - 1
        if name in _CONVOLUTIONS:
            yield from _both(node, source, _ndim(node) - _spatial(name) - 1, "convolution")
        elif name in _LAYER_NORMALIZATIONS:
            normalized = _argument(node, 1, "normalized_shape")
            if isinstance(normalized, int) or len(normalized) == 1:
                yield (node, last), "normalization"  # else over channels and locations together
        elif name in _NORMALIZATIONS:
            yield (node, 1), "normalization"
        elif name == "linear":
            yield (node, last), "linear layer"
            if source is not None:
                yield (source, _ndim(source) - 1), "linear layer"
        elif name == "embedding":
            yield (node, last), "linear layer"
        elif name in {"matmul", "mm", "addmm", "bmm"}:
            yield from _product_evidence(node, weights)
        elif name == "einsum":
            yield from _einsum_evidence(node, weights)
        elif name in {"cosine_similarity", "cdist"} and len(node.all_input_nodes) == 2:
            dim = -1 if name == "cdist" else _argument(node, 2, "dim")
            for features, other in itertools.permutations(node.all_input_nodes):
                if other in weights and features not in weights:
                    axis = 1 if dim is None else int(dim)
                    yield (features, axis % _ndim(features)), "linear layer"


def _product_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[tuple[Axis, str]]:
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
    """Return the letters of the operands' axes and of the output's; None for other forms."""
    equation = node.args[0]
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return None
    left, _, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    fits = len(operands) == len(_einsum_operands(node)) and all(
        len(set(letters)) == len(letters) == _ndim(operand)
        for letters, operand in zip(operands, _einsum_operands(node), strict=True)
    )
    return (operands, right) if fits else None


def _einsum_operands(node: fx.Node) -> list[fx.Node]:
    given: Any = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = given[0]
    return [operand for operand in given if isinstance(operand, fx.Node)]


def _einsum(node: fx.Node) -> Iterator[Link]:
    if (found := _einsum_letters(node)) is not None:
        for letters, operand in zip(found[0], _einsum_operands(node), strict=True):
            for axis, letter in enumerate(letters):
                if letter in found[1]:
                    yield (node, found[1].index(letter)), (operand, axis)


def _einsum_evidence(node: fx.Node, weights: set[fx.Node]) -> Iterator[tuple[Axis, str]]:
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


def _both(
    node: fx.Node, source: fx.Node | None, axis: int, kind: str
) -> Iterator[tuple[Axis, str]]:
    yield (node, axis), kind
    if source is not None:
        yield (source, axis), kind


# Functions ---------------------------------------------------------------------------------


def _broadcast(node: fx.Node) -> Iterator[Link]:
    """Element by element: axes are aligned from the right."""
    ndim, shape = _ndim(node), _shape(node)
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    for source in sources[:1] if _name(node) == "setitem" else sources:
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
    source = _input(node)
    if source is None:
        return
    if _ndim(source) == _ndim(node):
        yield from _broadcast(node)
        return
    dims = _argument(node, _DIM_AT.get(_name(node), 1), "dim", "axis")
    if dims is None or isinstance(dims, bool):  # std(False)
        return
    given = [dims] if isinstance(dims, int) else dims
    if not all(isinstance(dim, int) for dim in given):
        return
    gone = {dim % _ndim(source) for dim in given}
    kept = [axis for axis in range(_ndim(source)) if axis not in gone]
    if len(kept) == _ndim(node):
        yield from (((node, axis), (source, old)) for axis, old in enumerate(kept))


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
    elif name == "multi_head_attention_forward":
        if node.meta.get("leaf") == (0,):
            yield from _axes_in_order(node, source, (0, 1))
    elif name in _PARTS and _ndim(source) == _ndim(node):
        yield from _axes_in_order(node, source, range(_ndim(node)))


def _matmul(node: fx.Node) -> Iterator[Link]:
    left, right = [*node.all_input_nodes, None, None][:2]
    if left is None or right is None or min(_ndim(left), _ndim(right)) < 2:
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
    if any(isinstance(item, (fx.Node, list)) for item in items):
        return  # indexing by a tensor
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


_CONVOLUTIONS = {
    f"conv{kind}{n}d" for kind in ("", "_transpose", "_tbc") for n in (1, 2, 3)
} | {"deform_conv2d"}  # fmt: skip
_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "std", "var", "norm", "logsumexp", "prod", "median", "argmax",
    "argmin", "linalg_vector_norm", "vector_norm", "nansum", "nanmean", "any", "all",
    "count_nonzero",
}  # fmt: skip
_DIM_AT = dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm"), 2)
_HANDLERS: dict[str, Callable[[fx.Node], Iterator[Link]]] = {
    **dict.fromkeys(("permute",), _permute),
    **dict.fromkeys(
        ("transpose", "swapaxes", "swapdims", "mT", "mH", "adjoint", "T", "t", "H"), _transpose
    ),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "ravel", "reshape_as"), _reshape),
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
}


# Reading nodes -----------------------------------------------------------------------------


def _name(node: fx.Node) -> str:
    return operation(node.target) if callable(node.target) else str(node.target)


def _is_foreign(node: fx.Node) -> bool:
    """Whether the function is a custom operator, about whose axes nothing is known."""
    qualified = str(getattr(node.target, "_qualified_op_name", ""))
    return bool(qualified) and not qualified.startswith("aten::")


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
    return int(name.rstrip("d")[-1]) if name.rstrip("d")[-1].isdigit() else 2
