"""The two matrix products of the fast gradient, for any memory layout.

Both run over blocks of samples that fit in a cache. Each block is centred there, which costs no
pass over memory, makes no activation-sized copy, and keeps precision where means are large.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CPU_BLOCK = 65_536  # elements: 256 KB in float32
_GPU_BLOCK = 16_777_216  # there, few large kernels beat small blocks


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which statistics are computed: at least float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def moments(h: Tensor, axis: int, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return Σ x xᵀ and Σ x over all samples, where x = z − μ.

    **Arguments:**

    - `h`: the activation, its channels at `axis`.
    - `mean`: μ, shape (d,), or None for zero.

    **Returns:** tensors of shapes (d, d) and (d,), in float32 or float64.
    """
    d = h.shape[axis]
    if torch.compiler.is_compiling():
        x = _centred(h.movedim(axis, -1).reshape(-1, d), mean, rows=True)
        return x.T @ x, x.sum(dim=0)
    rows = _by_rows(h, axis)
    second = h.new_zeros((d, d), dtype=working_dtype(h))
    first = h.new_zeros((d,), dtype=working_dtype(h))
    for (block,) in _blocks(rows, axis, h):
        x = _centred(block, mean, rows)
        second.addmm_(x.T, x) if rows else second.addmm_(x, x.T)
        first += x.sum(dim=0 if rows else 1)
    return second, first


def add_product(
    grad: Tensor, h: Tensor, axis: int, mean: Tensor | None, shift: Tensor | None, g: Tensor
) -> Tensor:
    """Return ``grad + (z − μ − shift) G`` as a new tensor; ``grad`` is never written to.

    **Arguments:**

    - `grad`: the gradient that arrives at the activation, of its shape.
    - `h`, `axis`, `mean`: as for `moments`.
    - `shift`: what μ is off by, shape (d,), or None for zero.
    - `g`: the symmetric matrix G, shape (d, d).
    """
    if torch.compiler.is_compiling():
        x = _centred(h.movedim(axis, -1).reshape(-1, h.shape[axis]), mean, rows=True)
        product = (x if shift is None else x - shift) @ g
        product = product.reshape(h.movedim(axis, -1).shape).movedim(-1, axis)
        return torch.add(grad, product).to(grad.dtype)
    rows = _by_rows(h, axis)
    if rows:
        moved = torch.empty_like(grad.movedim(axis, -1), memory_format=torch.contiguous_format)
        out = moved.movedim(-1, axis)
    else:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    for z, arriving, leaving in _blocks(rows, axis, h, grad, out):
        x = _centred(z, mean, rows)
        if shift is not None:
            x = x - (shift if rows else shift[:, None])
        operands = (x, g) if rows else (g, x)
        if arriving.dtype == x.dtype:
            torch.addmm(arriving, *operands, out=leaving)
        else:
            leaving.copy_(torch.addmm(arriving.to(x.dtype), *operands))
    return out


def _by_rows(h: Tensor, axis: int) -> bool:
    """Whether blocks have samples as rows (m, d), rather than channels (d, m).

    They have where channels lie last in memory, and where memory has no useful order.
    """
    locations = h.shape[axis + 1 :].numel()
    return locations == 1 or not h.is_contiguous()


def _blocks(rows: bool, axis: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into matching matrices; views, where memory allows."""
    d = tensors[0].shape[axis]
    if not rows:
        flat = [t.flatten(0, axis - 1) if axis else t[None] for t in tensors]
        for parts in zip(*(t.unbind(0) for t in flat), strict=True):
            yield tuple(part.reshape(d, -1) for part in parts)
        return
    size = max((_CPU_BLOCK if tensors[0].device.type == "cpu" else _GPU_BLOCK) // d, 1)
    moved = [t.movedim(axis, -1) for t in tensors]
    if all(t.is_contiguous() for t in moved):
        moved = [t.reshape(-1, d) for t in moved]
    per_entry = max(moved[0][0].numel() // d, 1)
    for entries in zip(*(t.split(max(size // per_entry, 1)) for t in moved), strict=True):
        cut = (entry.reshape(-1, d).split(size) for entry in entries)
        yield from zip(*cut, strict=True)


def _centred(block: Tensor, mean: Tensor | None, rows: bool) -> Tensor:
    block = block.to(working_dtype(block))
    if mean is None:
        return block
    return block - (mean if rows else mean[:, None])
