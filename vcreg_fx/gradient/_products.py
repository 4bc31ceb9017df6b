"""The two matrix products of the fast gradient, for any memory layout.

Both run over blocks of samples that fit in a cache. Each block is centred there, which costs no
pass over memory, makes no activation-sized copy, and keeps precision where means are large.
Positions that are no samples are filled with zeros in the same blocks, so that nothing depends on
what they hold, an infinity or NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._blocks import Blocks, Workspace, fits_in_cache
from ._precision import FULL, product, working_dtype

_PLAIN = 1 << 24  # multiplications that are so few that one plain product is fastest


def moments(
    h: Tensor,
    axis: int,
    centre: Tensor | None,
    dtype: torch.dtype,
    absent: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return Σ x xᵀ and Σ x over all samples, where x = z − centre; and x, if it is small.

    **Arguments:**

    - `h`: the activation, its channels at `axis`.
    - `centre`: shape (d,), or None for zero.
    - `dtype`: of the factors of the product.
    - `absent`: true at positions that are no samples, of the shape of `h` without its channel axis;
      None where all are.

    **Returns:** tensors of shapes (d, d) and (d,), in float32 or float64; and where all samples fit
    in a cache and none is left out, x as a matrix (n, d) of its own, for `add_small_product`.
    """
    working = working_dtype(h)
    if torch.compiler.is_compiling():
        x = _all_centred(h, axis, centre)
        x = x if absent is None else x.masked_fill(absent.reshape(-1, 1), 0)
        first, x = x.sum(dim=0), x.to(dtype)
        return gram(x), first, None
    d = h.shape[axis]
    small = small_matrix(h, axis, centre, dtype) if absent is None else None
    if small is not None:
        few = len(small) * d * d <= _PLAIN
        return small.T @ small if few else SymmetricSum.of(small), small.sum(dim=0), small
    second = SymmetricSum(d, working, h.device)
    first = torch.zeros((d,), dtype=working, device=h.device)
    blocks = Blocks(axis, h, *_over_channels(absent, h, axis))
    space = blocks.workspace(dtype)
    for block, *left_out in blocks:
        x = _centred(block, centre, space, None, *left_out)
        second.add(x)
        first += x.sum(dim=0, dtype=working)
    return second.result(), first, None


def small_matrix(h: Tensor, axis: int, centre: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return samples that fit in a cache, less the centre, as a matrix (n, d); None for more.

    It lies in memory as the activation does: by rows where channels are neighbours, else by
    columns.
    """
    if centre is None or dtype not in FULL or h.dtype != dtype or not fits_in_cache(h):
        return None
    moved, d = h.movedim(axis, -1), h.shape[axis]
    if moved.is_contiguous():
        return (moved - centre).view(-1, d)
    columns = h.new_empty((d, *moved.shape[:-1]))
    torch.sub(moved, centre, out=columns.movedim(0, -1))
    return columns.view(d, -1).T


def add_small_product(grad: Tensor, x: Tensor, axis: int, g: Tensor) -> Tensor:
    """Return ``grad + x G`` as a new tensor, x being what `moments` returned."""
    moved, d = grad.movedim(axis, -1), len(g)
    if x.is_contiguous() and moved.is_contiguous() and grad.dtype == x.dtype:
        return torch.addmm(moved.view(-1, d), x, g).view(moved.shape).movedim(-1, axis)
    if x.is_contiguous():
        added = (x @ g).view(moved.shape)
    else:
        added = (g @ x.T).view(d, *moved.shape[:-1]).movedim(0, -1)
    return torch.add(grad, added.movedim(-1, axis)).to(grad.dtype)


def add_product(
    grad: Tensor,
    h: Tensor,
    axis: int,
    centre: Tensor | None,
    g: Tensor,
    dtype: torch.dtype,
    rest: Tensor | None = None,
    absent: Tensor | None = None,
) -> Tensor:
    """Return ``grad + (z − centre − rest) G`` as a new tensor; ``grad`` is never written to.

    Where a position is no sample, it is ``grad`` alone.

    **Arguments:**

    - `grad`: the gradient that arrives at the activation, of its shape.
    - `h`, `axis`, `centre`, `dtype`, `absent`: as for `moments`.
    - `g`: the symmetric matrix G, shape (d, d), in float32 or float64.
    - `rest`: what the centre lacks in digits, shape (d,).
    """
    row = None if rest is None else rest @ g
    scale = None
    if dtype not in FULL:  # where the entries of G could underflow
        scale = g.abs().amax().clamp_min(torch.finfo(g.dtype).tiny)
        g = (g / scale).to(dtype)
    if torch.compiler.is_compiling():
        added = product(_all_centred(h, axis, centre).to(dtype), g)
        added = added if scale is None else added * scale
        added = added if row is None else added - row
        added = added if absent is None else added.masked_fill(absent.reshape(-1, 1), 0)
        added = added.reshape(h.movedim(axis, -1).shape).movedim(-1, axis)
        return torch.add(grad, added).to(grad.dtype)
    out = torch.empty_like(grad)
    blocks = Blocks(axis, h, grad, out, *_over_channels(absent, h, axis))
    space = blocks.workspace(dtype)
    in_full = dtype in FULL and grad.dtype == h.dtype == dtype
    if blocks.ndim == 2 and in_full and absent is None:
        for block, arriving, leaving in blocks:
            torch.addmm(arriving, _centred(block, centre, space, rest), g, out=leaving)
        return out
    if in_full and absent is None and blocks.are_planes:
        for block, arriving, leaving in blocks:
            planes = block.mT if centre is None else _centred_planes(block, centre, space, rest)
            factors = g.expand(len(planes), *g.shape)
            torch.baddbmm(arriving.mT, factors, planes, out=leaving.mT)
        return out
    result = blocks.workspace(working_dtype(h))
    for block, arriving, leaving, *left_out in blocks:
        x = _centred(block, centre, space)
        added, matrix = result.of(block.shape)
        if scale is not None:
            torch.mul(product(x, g), scale, out=matrix)
            if row is not None:
                matrix -= row
        elif row is None:
            torch.mm(x, g, out=matrix)
        else:
            torch.addmm(row, x, g, beta=-1, out=matrix)
        if left_out:
            added.masked_fill_(left_out[0], 0)
        torch.add(arriving, added, out=leaving)
    return out


def _over_channels(absent: Tensor | None, h: Tensor, axis: int) -> list[Tensor]:
    return [] if absent is None else [absent.unsqueeze(axis).expand_as(h)]


def _centred(
    block: Tensor,
    centre: Tensor | None,
    space: Workspace,
    rest: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Return a block (…, d) less the centre as a matrix (m, d), in the space if need be."""
    if centre is None and left_out is None and block.dtype == space.dtype:
        return block.reshape(-1, block.shape[-1])
    room, matrix = space.of(block.shape)
    if centre is None:
        room.copy_(block)
    else:
        torch.sub(block, centre, out=room)
        if rest is not None:
            room -= rest
    if left_out is not None:
        room.masked_fill_(left_out, 0)
    return matrix


def _centred_planes(block: Tensor, centre: Tensor, space: Workspace, rest: Tensor | None) -> Tensor:
    """Return a block (b, l, d) less the centre as planes (b, d, l) in the space."""
    planes = space.planes(block.shape)
    torch.sub(block.mT, centre[:, None], out=planes)
    if rest is not None:
        planes -= rest[:, None]
    return planes


def _all_centred(h: Tensor, axis: int, centre: Tensor | None) -> Tensor:
    x = h.movedim(axis, -1).reshape(-1, h.shape[axis]).to(working_dtype(h))
    return x if centre is None else x - centre


# Σ x xᵀ without the products that symmetry makes needless ---------------------------------------


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
