"""Functions that work element by element, and those that leave every axis where it was."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ._operations import Link, Made, links, ndim_of, shape_of

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
_ALONG_AXES = {
    "channel_shuffle", "cross", "cumprod", "cumsum", "cumulative_trapezoid", "diff", "flip",
    "fliplr", "flipud", "glu", "gradient", "gumbel_softmax", "index_add", "index_copy",
    "index_fill", "index_reduce", "index_select", "interpolate", "linalg_cross", "log_softmax",
    "logcumsumexp", "masked_scatter", "msort", "narrow", "native_channel_shuffle", "normalize",
    "pixel_shuffle", "pixel_unshuffle", "renorm", "roll", "scatter", "scatter_add",
    "scatter_reduce", "select_scatter", "slice_scatter", "softmax", "softmin", "sort", "tril",
    "triu", "upsample", "upsample_bilinear", "upsample_nearest",
}  # fmt: skip
_OF_FIRST = {"setitem", "type_as", "to", "expand_as", "broadcast_to"}  # others: a type, a place


@links(*_ELEMENTWISE)
def _broadcast(made: Made) -> Iterator[Link]:
    """Operands are aligned from the right."""
    shape = made.shape
    sources = [n for n in made.sources if isinstance(n.meta.get("val"), Tensor)]
    for source in sources[:1] if made.name in _OF_FIRST else sources:
        offset = len(shape) - ndim_of(source)
        for axis, size in enumerate(shape_of(source)):
            if offset + axis >= 0 and size == shape[offset + axis]:
                yield (made.node, offset + axis), (source, axis)


links(*_ALONG_AXES)(Made.in_order)
