"""Activations, of any layout in memory, as matrices of samples that fit in a cache.

Logically every matrix has samples as rows, shape (m, d). In memory it lies as the activation does:
by rows where channels are neighbours (NLC, channels-last), by columns elsewhere (NCHW), so that
filling it reads runs of neighbours and no product needs a transposed copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CPU_BLOCK = 393_216  # elements: 1.5 MB in float32
_GPU_BLOCK = 16_777_216  # there, few large kernels beat small blocks


def fits_in_cache(h: Tensor) -> bool:
    """Whether an activation is one block."""
    return h.numel() <= (_CPU_BLOCK if h.device.type == "cpu" else _GPU_BLOCK)


class Blocks:
    """The samples of activations of one shape, block by block.

    **Arguments:**

    - `axis`: their channel axis.
    - `tensors`: the activations; how the first lies in memory decides how matrices do.

    **Attributes:**

    - `channels`: d.
    - `ndim`: how many axes blocks have.
    """

    def __init__(self, axis: int, *tensors: Tensor) -> None:
        self.channels = tensors[0].shape[axis]
        moved = [tensor.movedim(axis, -1) for tensor in tensors]
        size = _CPU_BLOCK if tensors[0].device.type == "cpu" else _GPU_BLOCK
        merged = _merge_sample_axes(moved)
        self._blocks = list(_cut(merged, max(size, self.channels)))
        self.ndim = self._blocks[0][0].ndim
        self._by_rows = self.channels == 1 or moved[0].stride(-1) == 1
        self._device = tensors[0].device

    @property
    def are_planes(self) -> bool:
        """Whether blocks are (b, l, d) and lie in memory as b matrices (d, l) with l ≥ d.

        These are so long that one product for each is as fast as one for all.
        """
        return self.ndim == 3 and all(
            block.shape[1] >= self.channels and block.mT.is_contiguous()
            for together in self._blocks
            for block in together
        )

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield matching blocks of the tensors: views of shape (…, d)."""
        return iter(self._blocks)

    def workspace(self, dtype: torch.dtype) -> Workspace:
        """Return memory for one block at a time, used over and over."""
        largest = max(block.numel() for block, *_ in self._blocks)
        memory = torch.empty(largest, dtype=dtype, device=self._device)
        return Workspace(memory, self.channels, self._by_rows)


class Workspace:
    """Memory for one block, seen in two ways.

    Blocks of one shape get the same two tensors: making a view costs more than a small operation.
    """

    def __init__(self, memory: Tensor, channels: int, by_rows: bool) -> None:
        self.dtype = memory.dtype
        self._memory = memory
        self._channels = channels
        self._by_rows = by_rows
        self._views: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def of(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the memory for a block of ``shape`` (…, d): as the block, and as (m, d)."""
        key = tuple(shape)
        if key not in self._views:
            self._views[key] = self._view(key)
        return self._views[key]

    def planes(self, shape: Sequence[int]) -> Tensor:
        """Return the memory for a block of ``shape`` (b, l, d) as (b, d, l)."""
        b, length, d = shape
        return self._memory[: b * length * d].view(b, d, length)

    def _view(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        flat = self._memory[: math.prod(shape)]
        if self._by_rows:
            return flat.view(shape), flat.view(-1, self._channels)
        columns = flat.view(self._channels, *shape[:-1])
        return columns.movedim(0, -1), columns.view(self._channels, -1).T


def _merge_sample_axes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Make one axis of neighbouring sample axes, where that is a view of every tensor."""
    merged = list(tensors)
    for axis in range(merged[0].ndim - 3, -1, -1):
        if all(t.stride(axis) == t.stride(axis + 1) * t.shape[axis + 1] for t in merged):
            merged = [t.flatten(axis, axis + 1) for t in merged]
    return merged


def _cut(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    first = tensors[0]
    total = first.numel()
    if total <= size or first.ndim == 1:
        yield tuple(tensors)
        return
    entries = first.shape[0]
    if first.ndim > 2 and total // entries > size:
        for entry in zip(*(t.unbind(0) for t in tensors), strict=True):
            yield from _cut(entry, size)
        return
    most = max(size // (total // entries), 1)
    length = math.ceil(entries / math.ceil(entries / most))  # blocks of about equal length
    yield from zip(*(t.split(length) for t in tensors), strict=True)
