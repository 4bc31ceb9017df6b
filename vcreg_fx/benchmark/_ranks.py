"""The cost of statistics over all ranks: training steps under DistributedDataParallel."""

from __future__ import annotations

import copy
import random
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ..surgery import insert
from ._step import Quartiles, Step, keep_freed_memory, quartiles
from ._variants import IDENTITY

RANK_VARIANTS: dict[str, dict[str, Any] | None] = {
    IDENTITY: None,
    "statistics of each rank": {},
    "sync=True": {"sync": True},
}


@dataclass(frozen=True)
class RankRow:
    """One variant, on the first of several ranks that train together.

    **Attributes:**

    - `variant`: its name.
    - `seconds`: median wall-clock time of a step.
    - `ratio`: time over identity's in the same round, quartiles.
    - `exchanges`: all-reduces of VCReg in a step.
    - `exchanged`: bytes that they add up.
    """

    variant: str
    seconds: float
    ratio: Quartiles
    exchanges: int
    exchanged: int


def measure_ranks(
    model: nn.Module,
    inputs: Tensor,
    rule: str,
    *,
    ranks: int = 2,
    rounds: int = 11,
    keep_memory: bool = False,
) -> list[RankRow]:
    """Time steps of processes on this machine, joined by gloo, one thread each.

    **Arguments:**

    - `model`: on the CPU.
    - `inputs`: the batch of one rank.
    - `rule`: where.
    - `ranks`, `rounds`: how many.
    - `keep_memory`: as for `bench`.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = (str(folder), model, inputs, rule, ranks, rounds, keep_memory)
        spawn(_rank, work, nprocs=ranks)
        found: list[RankRow] = torch.load(Path(folder, "rows.pt"), weights_only=False)
    return found


def _rank(
    rank: int,
    folder: str,
    model: nn.Module,
    inputs: Tensor,
    rule: str,
    ranks: int,
    rounds: int,
    keep_memory: bool,
) -> None:
    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of identity, too
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks,
        timeout=timedelta(minutes=5),
    )  # fmt: skip
    steps, counts = {}, {}
    for name, options in RANK_VARIANTS.items():
        variant = copy.deepcopy(model).train()
        if options is not None:
            insert(variant, rule, example_inputs=(inputs,), **options)
        steps[name] = Step(name, DistributedDataParallel(variant), variant, inputs, "float32")
        steps[name].run()
        counts[name] = _count_exchanges(steps[name])
    order = random.Random(0)  # the same on every rank
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name in order.sample(list(steps), len(steps)):
            dist.barrier()
            start = time.perf_counter()
            steps[name].run()
            times[name].append(time.perf_counter() - start)
    if rank == 0:
        rows = [
            RankRow(
                name,
                quartiles(own[1:])[1],
                quartiles([a / b for a, b in zip(own[1:], times[IDENTITY][1:], strict=True)]),
                *counts[name],
            )
            for name, own in times.items()
        ]
        torch.save(rows, Path(folder, "rows.pt"))
    dist.destroy_process_group()


def _count_exchanges(step: Step) -> tuple[int, int]:
    """Return how many all-reduces of Python code a step has, and their bytes."""
    found: list[int] = []
    original = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(tensor.numel() * tensor.element_size())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        step.run()
    finally:
        dist.all_reduce = original
    return len(found), sum(found)
