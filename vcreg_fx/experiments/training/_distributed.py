"""The processes that ``torchrun`` started, if it did."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from placement_rules._torch import BASES_OF_BATCH_NORMS

_SEED_BITS = 22
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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

    def draw_apart(self) -> None:
        """Let torch draw other random numbers in each process; those of the first stay.

        Of the 32 bits of a seed that the CPU's generator takes, the upper ten tell processes apart:
        no two share a stream, whatever their seeds below 2²² are. Called again, it changes nothing.
        """
        seed = torch.initial_seed()
        if self.rank and seed >> _SEED_BITS != self.rank:
            torch.manual_seed((self.rank << _SEED_BITS) + seed % (1 << _SEED_BITS))

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


@contextmanager
def synchronized(model: nn.Module, where: Processes) -> Iterator[None]:
    """Let batch norms take the statistics of all processes, where these have GPUs.

    PyTorch has no such batch norms for CPUs, where each process goes on to take its own. All of
    the model's own batch norms are back at the end, with what they have learned.

    **Arguments:**

    - `model`: it lies where it is trained, and is no batch norm itself.

    **Raises:** `ValueError` for batch norms that do more than PyTorch's, which would get lost.
    """
    if where.size == 1 or where.device.type != "cuda":
        yield
        return
    before = [
        (module, name, child)
        for module in model.modules() for name, child in module.named_children()
        if isinstance(child, BASES_OF_BATCH_NORMS) and not isinstance(child, nn.SyncBatchNorm)
    ]  # fmt: skip
    if more := [type(child).__name__ for *_, child in before if type(child) not in _PLAIN]:
        raise ValueError(
            f"{more[0]} is no plain batch norm, and cannot be synchronized between processes; "
            "train in one process, or on CPUs."
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # they share parameters and buffers
    try:
        yield
    finally:
        for module, name, child in before:
            setattr(module, name, child)


def _leave() -> None:
    """Take leave of the others before the interpreter ends, which gloo's threads do not survive."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
