"""The processes that ``torchrun`` started, if it did."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together.

    **Attributes:**

    - `rank`, `size`: which one this is, of how many.
    - `device`: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def any(self, flag: int) -> int:
        """Return the largest flag of all processes."""
        if self.size == 1:
            return flag
        found = torch.tensor(flag, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a 0-d tensor over all processes."""
        if self.size > 1:
            value = value.to(self.device)
            distributed.all_reduce(value)
        return float(value) / self.size

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return a CPU tensor of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        mine = value.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(found, mine)
        return [tensor.cpu() for tensor in found]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model, or with several processes the model in DDP."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def processes(device: str | None = None) -> Processes:
    """Join the processes of ``torchrun``; without it, this process is alone.

    **Arguments:**

    - `device`: by default the GPU of this process, else the CPU.
    """
    started = distributed.is_available() and "WORLD_SIZE" in os.environ
    local = int(os.environ.get("LOCAL_RANK", "0")) if started else 0
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if started and not distributed.is_initialized():
        if where.type == "cuda":
            torch.cuda.set_device(where)
        distributed.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            timeout=timedelta(days=30),  # the others wait while the first one measures
        )
        atexit.register(_leave)
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size(), where)
    return Processes(0, 1, where)


def _leave() -> None:
    """Take leave of the others before the interpreter ends, which gloo's threads do not survive."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
