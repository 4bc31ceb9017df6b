"""Statistics over the ranks of a process group: sums, and the samples of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def group_of(sync: Any) -> Any:
    """Return the process group that ``sync`` means; None where there is one process only."""
    if sync is False or not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if sync is True else sync
    return group if dist.get_world_size(group) > 1 else None


def group_sum(tensor: Tensor, group: Any) -> Tensor:
    """Return the sum of a tensor over the ranks, not differentiable; the tensor for None."""
    if group is None:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group)
    return total


class GroupSum(torch.autograd.Function):
    """The sum of a tensor over the ranks; gradients are summed over the ranks as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        """Return the sum."""
        ctx.group = group
        return group_sum(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the sum of the gradients."""
        return group_sum(grad.contiguous(), ctx.group), None


class GatherSamples(torch.autograd.Function):
    """The samples of all ranks, of unequal numbers, below each other."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Any) -> Tensor:
        """Return all samples. z: (n of this rank, d)."""
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        counts = torch.zeros(ranks, dtype=torch.long, device=z.device)
        counts[rank] = z.shape[0]
        dist.all_reduce(counts, group=group)
        starts = [0, *counts.cumsum(0).tolist()]
        ctx.group, ctx.rows = group, slice(starts[rank], starts[rank + 1])
        everything = z.new_zeros((starts[-1], z.shape[1]))
        everything[ctx.rows] = z
        dist.all_reduce(everything, group=group)  # each row comes from one rank
        return everything

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the rows of this rank, summed over the ranks' losses."""
        return group_sum(grad.contiguous(), ctx.group)[ctx.rows], None
