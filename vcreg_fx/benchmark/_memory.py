"""What a step keeps for backward, and its peak of memory."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ._step import Step


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
