"""The samples of all ranks, as one batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_samples(z: Tensor, group: Any = None) -> Tensor:
    """Return the rows of all ranks, of shape (Σ n, d); every rank has to call it.

    What is computed from them is the same on every rank. Each rank's gradient reaches its own rows
    only, and is multiplied by the number of ranks, because DistributedDataParallel averages
    gradients: the average is then the gradient for the whole batch.

    **Arguments:**

    - `z`: this rank's samples, shape (n, d); n may differ between ranks.
    - `group`: the process group; None for all ranks.
    """
    gathered: Tensor = _Gather.apply(z, group)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Any) -> Tensor:
        count = torch.tensor([len(z)], device=z.device)
        counts = [torch.zeros_like(count) for _ in range(dist.get_world_size(group))]
        dist.all_gather(counts, count, group=group)
        sizes = [int(size) for size in counts]
        padded = z.new_zeros(max(sizes), z.shape[1])
        padded[: len(z)] = z
        parts = [torch.zeros_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        rank = dist.get_rank(group)
        ctx.ranks, ctx.begin, ctx.end = len(sizes), sum(sizes[:rank]), sum(sizes[: rank + 1])
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.begin : ctx.end] * ctx.ranks, None
