"""Functions that reduce axes, or mix or pick what stands along them, and leave all others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from ._operations import LINEAR, Effect, Evidence, Link, Made, evidence, links, ndim_of, shape_of


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
