"""Statistics over the ranks of a process group: sums, and the samples of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_STORED = "process group of ranks "  # what stands for a group in plain data


def as_data(sync: Any) -> bool | str:
    """Return ``sync`` as plain data: a process group as the words that say which ranks it had."""
    if isinstance(sync, (bool, str)):
        return sync
    return _STORED + ", ".join(str(rank) for rank in dist.get_process_group_ranks(sync))


def check_sync(sync: Any) -> None:
    """Refuse what is no group, and what stands for a group that is to be made anew.

    One process alone is the same with any group, and may go on with the words.

    **Raises:** `ValueError` that says what to pass.
    """
    stored = isinstance(sync, str) and sync.startswith(_STORED)
    if stored and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"sync={sync!r} stands for a process group, which is stored with no configuration and "
            "no model. Make the group and insert with it: vcreg_fx.insert(model, **{**config, "
            '"sync": group}), after vcreg_fx.remove(model) where the model was loaded with VCReg.'
        )
    if not (stored or isinstance(sync, bool) or hasattr(sync, "rank")):
        raise ValueError(f"sync={sync!r} must be True, False, or a torch.distributed.ProcessGroup.")


def group_of(sync: Any) -> Any:
    """Return the process group that ``sync`` means; None where there is one process only.

    **Raises:** `ValueError` in one of several processes, if the group was stored and not made anew.
    """
    if sync is False or not (dist.is_available() and dist.is_initialized()):
        return None
    if isinstance(sync, str):
        check_sync(sync)
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
