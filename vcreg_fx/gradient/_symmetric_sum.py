"""Σ x xᵀ over blocks of samples, without the products that symmetry makes needless."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._precision import FULL, product


class SymmetricSum:
    """Adds up the products xᵀx of matrices of samples, shape (m, d).

    On a CPU they are computed in panels of rows that start at the diagonal, and the rest is copied
    at the end. Views are kept from block to block: making one costs as much as a small operation.

    **Arguments:**

    - `d`: how many channels.
    - `dtype`, `device`: of the sum.
    """

    def __init__(self, d: int, dtype: torch.dtype, device: torch.device) -> None:
        self._sum = torch.empty((d, d), dtype=dtype, device=device)
        self._d = d
        self._width = _panel_width(d) if device.type == "cpu" else d
        self._starts = range(0, d, self._width)
        self._targets = self._from_diagonal(self._sum.split(self._width))
        self._last: Tensor | None = None
        self._factors: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, x: Tensor) -> Tensor:
        """Return xᵀx of one matrix."""
        found = cls(x.shape[1], x.dtype, x.device)
        found.add(x)
        return found.result()

    def add(self, x: Tensor) -> None:
        """Add xᵀx; `x` may be the tensor of the call before, with other samples in it."""
        started = self._last is not None
        if x is not self._last:
            lefts = x.split(self._width, dim=1)
            rights = self._from_diagonal([x] * len(lefts))
            self._factors = [(a.T, b) for a, b in zip(lefts, rights, strict=True)]
            self._last = x
        for target, (left, right) in zip(self._targets, self._factors, strict=True):
            if left.dtype in FULL:
                target.addmm_(left, right, beta=int(started))
            elif started:
                target.add_(product(left, right))
            else:
                target.copy_(product(left, right))

    def result(self) -> Tensor:
        """Return the sum, shape (d, d)."""
        columns = self._sum.split(self._width, dim=1)
        for target, column, stop in zip(self._targets, columns, self._starts[1:], strict=False):
            rest = self._d - stop
            column.narrow(0, stop, rest).copy_(target.narrow(1, self._width, rest).T)
        return self._sum

    def _from_diagonal(self, panels: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(panels, self._starts, strict=True)
        return [panel.narrow(1, start, self._d - start) for panel, start in pairs]


_WIDE = 96  # channels, from which on leaving operations out pays for the call of an operator


def gram(x: Tensor) -> Tensor:
    """Return xᵀx of one matrix (n, d) in compiled code, in float32 or float64.

    The compiler's own product knows nothing of symmetry.
    """
    if x.dtype not in FULL or x.device.type != "cpu" or x.shape[1] < _WIDE:
        return product(x.T, x)
    found: Tensor = _gram(x)
    return found


@torch.library.custom_op("vcreg_fx::gram", mutates_args=(), schema="(Tensor x) -> Tensor")
def _gram(x: Tensor) -> Tensor:
    return SymmetricSum.of(x)


@_gram.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[1], x.shape[1]))


def _panel_width(d: int) -> int:
    """More panels save more operations, but narrow and unaligned ones run at a lower rate."""
    return 16 * math.ceil(3 * math.sqrt(d) / 16)  # measured: 32 is best for 96 channels, 96 for 768
