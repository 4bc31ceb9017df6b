"""A small ablation for the tests: functions at the top level, which other processes can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

TITLE = "Small"


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(x).relu()


def build():
    return nn.Sequential(nn.Linear(4, 6), Residual(), Residual(), nn.Linear(6, 3))


def train(model, trial):
    """Train a few steps; what the trial says beside that, it may die of."""
    torch.set_num_threads(1)
    if log := trial.params.get("log"):
        # One file a run of a trial: so many there are, so often it was trained.
        name = f"{trial.id}-{os.getpid()}-{time.time_ns()}"
        (Path(log) / name).touch()
    time.sleep(trial.params.get("sleep", 0))
    if trial.params.get("hang") == trial.label:
        time.sleep(1000)
    if trial.params.get("exit") == trial.label:
        raise SystemExit(3)
    if trial.params.get("interrupt") == trial.label:
        raise KeyboardInterrupt
    if trial.params.get("vanish") == trial.label:
        os._exit(3)
    if trial.params.get("fail") == trial.label:
        raise RuntimeError(f"no training with {trial.label}")
    if (once := trial.params.get("die_once")) and trial.label == "head":
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            pass  # it died here before
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    if trial.params.get("die_always") == trial.label:
        os.kill(os.getpid(), signal.SIGKILL)
    x = torch.randn(32, 4) + float(np.random.rand())
    y = torch.arange(32) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.params.get("lr", 0.1))
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def evaluate(model, trial):
    torch.manual_seed(1234)
    with torch.no_grad():
        output = model(torch.randn(64, 4))
    return {"spread": output.std(), "mean": float(output.mean()), "seed_is": trial.seed}
