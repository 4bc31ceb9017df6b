"""Functions of numbers: element by element, and along axes that they reduce, mix or pick from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from ._operations import LINEAR, Effect, Evidence, Link, Made, evidence, links, ndim_of, shape_of

# Element by element --------------------------------------------------------------------------

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

# Along axes ----------------------------------------------------------------------------------


def _along(position: int, default: Any = None) -> Effect:
    """Return what a function does whose argument at a position, ``dim``, says along what."""

    def effect(made: Made) -> Iterator[Link]:
        dim = made.argument(position, "dim", "axis")
        return made.without(default if dim is None else dim)

    return effect


links(
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "logsumexp", "mean",
    "median", "nanmean", "nansum", "prod", "special_logsumexp", "std", "sum", "var",
)(_along(1))  # fmt: skip
links("norm", "vector_norm", "linalg_vector_norm", "linalg_norm")(_along(2))
links("trapezoid", "trapz")(_along(2, -1))
_EXTREMES = ("max", "min", "median", "nanmedian", "std_mean", "var_mean", "aminmax")
links(*_EXTREMES, part="each")(_along(1))
links("mode", part="each")(_along(1, -1))
links("kthvalue", part="each")(_along(2, -1))
links("select", "gather")(_along(1))  # which one is taken may differ from place to place
links("take_along_dim")(_along(2))
links("unbind", part="each")(_along(1, 0))
# Axes along which numbers are mixed hold frequencies or places then.
links("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")(_along(2, -1))
links("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2")(_along(2, (-2, -1)))


@links("quantile", "nanquantile")
def _quantile(made: Made) -> Iterator[Link]:
    """Several quantiles stand along a new first axis."""
    q, dim = made.argument(1, "q"), made.argument(2, "dim")
    return made.without(dim, new=1 if isinstance(q, fx.Node) and ndim_of(q) == 1 else 0)


@links("cosine_similarity", "pairwise_distance")
def _compared(made: Made) -> Iterator[Link]:
    """Two tensors are compared along an axis of both, which is gone."""
    dim = -1 if made.name == "pairwise_distance" else made.argument(2, "dim")
    for source in made.sources:
        if (ndim := ndim_of(source)) == made.ndim + 1:
            axis = (1 if dim is None else int(dim)) % ndim
            kept = enumerate(old for old in range(ndim) if old != axis)
            alike = [(a, b) for a, b in kept if made.shape[a] == shape_of(source)[b]]
            yield from made.links(alike, source)


@evidence("cosine_similarity", "cdist")
def _compared_with_weights(made: Made) -> Iterator[Evidence]:
    """Features are compared with weights along the features' channels."""
    dim = -1 if made.name == "cdist" else made.argument(2, "dim")
    if len(made.sources) == 2:
        for features, other in (made.sources, made.sources[::-1]):
            if other in made.weights and features not in made.weights:
                yield (features, (1 if dim is None else int(dim)) % ndim_of(features)), LINEAR
