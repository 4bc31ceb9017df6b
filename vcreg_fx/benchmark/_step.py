"""One training step of a model, and what is measured of it: time, the floor, memory."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import leaves

from ._variants import added_loss

Quartiles = tuple[float, float, float]


class Clock:
    """Reads the time that work on a device took so far, in seconds.

    On a CPU with one thread it is the time that the thread ran, so that other programs on the
    machine count less; elsewhere it is wall-clock time, after the device has finished.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._of_thread = device.type == "cpu" and torch.get_num_threads() == 1

    @property
    def name(self) -> str:
        """What is measured, in words."""
        return "processor time of one thread" if self._of_thread else "wall-clock time"

    def read(self) -> float:
        """Return seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.thread_time() if self._of_thread else time.perf_counter()

    def of(self, work: Callable[[], object]) -> float:
        """Return how long some work takes."""
        start = self.read()
        work()
        return self.read() - start


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return processor, graphics card, threads and versions; nothing that names the machine."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        found["graphics card"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the rest of the process; return whether it can.

    By default glibc gives large blocks back at once and gets them anew, empty, from the system at
    the next use. That takes a varying time, here 5 to 15 % of a step, which says nothing of the
    work that is measured. Allocators made for servers, and torch's own on a GPU, keep them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in other C libraries
    return mallopt is not None and all(
        mallopt(setting, value) == 1
        for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    )


def begin(
    device: torch.device, keep_memory: bool, **settings: Any
) -> tuple[dict[str, str | int], dict[str, Any]]:
    """Keep freed memory from here on, if that is asked for, and return what a timing is taken on.

    **Returns:** the machine, and the settings with what follows from them.
    """
    kept = device.type == "cuda" or (keep_memory and keep_freed_memory())
    memory = "kept" if kept else "given back"
    how = {"device": str(device), **settings, "clock": Clock(device).name, "freed memory": memory}
    return describe_machine(device), how


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


DTYPES = ("float32", "tf32", "bf16", "amp")


@dataclass(frozen=True)
class Step:
    """Forward, loss and backward of one variant, on one batch of noise.

    **Arguments:**

    - `variant`: its name.
    - `model`: the model, or its compiled form.
    - `inner`: the model itself, which holds the penalties.
    - `inputs`: the batch.
    - `dtype`: of `DTYPES`; ``"amp"`` is autocast in bfloat16.
    """

    variant: str
    model: Any
    inner: nn.Module
    inputs: Tensor
    dtype: str

    def forward(self) -> Tensor:
        """Return the loss: cross-entropy against fixed labels."""
        device = self.inputs.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.dtype == "amp"):
            output = self.model(self.inputs)
        logits = max((t for _, t in leaves(output)), key=Tensor.numel).flatten(1).float()
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
        return nn.functional.cross_entropy(logits, labels) + added_loss(self.variant, self.inner)

    def run(self) -> None:
        """Do one step."""
        self.forward().backward()
        self.clear()

    def clear(self) -> None:
        """Free the gradients."""
        for parameter in self.inner.parameters():
            parameter.grad = None

    def timed(self, clock: Clock) -> tuple[float, float]:
        """Return how long forward and backward take, in seconds."""
        start = clock.read()
        loss = self.forward()
        middle = clock.read()
        loss.backward()
        end = clock.read()
        self.clear()
        return middle - start, end - middle


class Floor:
    """Does the products zᵀz and z G of every site on contiguous matrices.

    **Arguments:**

    - `shapes`: (n, d) of each site.
    - `dtype`: of the factors.
    - `device`: where.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._work: list[tuple[int, Tensor, Tensor]] = []
        for (n, d), count in Counter(shapes).items():
            z = torch.randn((n, d), device=device).to(dtype)
            g = torch.randn((d, d), device=device).to(dtype)
            self._work.append((count, z, g))

    def run(self) -> None:
        """Do all products once."""
        for count, z, g in self._work:
            for _ in range(count):
                torch.mm(z.T, z)
                torch.mm(z, g)

    def timed(self, clock: Clock) -> float:
        """Return how long they take, in seconds."""
        return clock.of(self.run)


def saved_bytes(step: Step) -> int:
    """Return how many bytes autograd keeps between forward and backward, without the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in step.inner.state_dict().values()}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.forward()
    loss.backward()  # which lets go of what was kept; a graph alone would keep itself alive
    step.clear()
    return sum(found.values())


def peak_bytes(step: Step) -> int:
    """Return the most bytes that a step has allocated at a time, besides what it found."""
    device = step.inputs.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step.run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start and stop otherwise
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.run()
    results = profiler.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        now += change
        peak = max(peak, now)
    return peak
