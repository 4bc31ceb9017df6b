"""The state of a training run after an epoch, in a file."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._distributed import Processes


def save(path: Path, state: dict[str, Any], where: Processes) -> None:
    """Write a checkpoint, in one step; with the random states of all processes."""
    states = where.gather(torch.get_rng_state())
    cuda = where.gather(torch.cuda.get_rng_state(where.device)) if _on_cuda(where) else []
    if where.leads:
        name, keys, *rest = np.random.get_state(legacy=True)
        random_states = {
            "torch": states,
            "cuda": cuda,
            "numpy": [name, np.asarray(keys).tolist(), *rest],
            "python": random.getstate(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save({**state, "random": random_states}, temporary)
        os.replace(temporary, path)
    where.wait()


def load(path: Path, where: Processes) -> dict[str, Any] | None:
    """Return a checkpoint and restore the random states; None if there is none.

    **Raises:** `ValueError` if it was written by another number of processes.
    """
    where.wait()
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    found = state.pop("random")
    if len(found["torch"]) != where.size:
        raise ValueError(
            f"{path} was written by {len(found['torch'])} processes; go on with as many, or "
            "remove it to begin again."
        )
    torch.set_rng_state(found["torch"][where.rank])
    if _on_cuda(where) and found["cuda"]:
        torch.cuda.set_rng_state(found["cuda"][where.rank], where.device)
    name, keys, *rest = found["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    return state


def _on_cuda(where: Processes) -> bool:
    return where.device.type == "cuda"
