"""What the tests of trainers share: a tiny model, its data, and the same loop written by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vcreg_fx

RULE = "modules('middle') | head"
COEFFICIENTS = {"alpha": 1.0, "beta": 3.0}
INSERT: dict[str, Any] = {**COEFFICIENTS, "example_inputs": (torch.zeros(4, 6),)}
SGD = {"lr": 0.1, "momentum": 0.9}
BATCH = 8
EXACT, HALF = 1e-5, 2e-2


class Net(nn.Module):
    """Two layers and a classifier, which computes its loss if it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle, self.fc = nn.Linear(6, 10), nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.fc(self.middle(self.stem(x).relu()).relu())
        if labels is None:
            return logits
        return {"loss": task(logits, labels), "logits": logits}


def task(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


class Samples(Dataset[dict[str, Tensor]]):
    """Samples for a number of batches; every second one has labels that are to be ignored."""

    def __init__(self, batches: int, ignored: int = 0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = 0.7 * torch.randn(batches * BATCH, 6, generator=generator)
        self.labels = torch.randint(3, (batches * BATCH,), generator=generator)
        if ignored:
            self.labels.view(-1, BATCH)[1::2, :ignored] = -100

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


def loader(batches: int, ignored: int = 0) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Samples(batches, ignored), batch_size=BATCH)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float().clone() for p in model.parameters()])


def by_hand(
    batches: int,
    k: int,
    *,
    divide: Callable[[int], float] | None = None,
    by_labels: bool = False,
    ignored: int = 0,
    dtype: torch.dtype | None = None,
    clip: float | None = None,
    parts: int = 1,
    factor: Callable[[int], float] = lambda step: 1.0,
    vcreg: bool = True,
) -> Tensor:
    """The change of the weights by a plain loop with the naive penalty added to the loss.

    `divide` gives what the loss is divided by in a window of so many batches: by default their
    number. With `by_labels` the task is divided by the number of labels in the window instead.
    `parts`: of how many batches, each with statistics of its own, a step's gradient is the mean.
    """
    model = Net()
    before, optimizer = weights(model), torch.optim.SGD(model.parameters(), **SGD)
    seen: list[tuple[Tensor, str]] = []
    model.middle.register_forward_hook(lambda m, args, out: seen.append((out, "NC")))
    model.fc.register_forward_hook(lambda m, args, out: seen.append((args[0], "NC")))
    data = list(loader(batches * parts, ignored))
    windows = [data[i : i + k * parts] for i in range(0, len(data), k * parts)]
    for step, window in enumerate(windows):
        count = len(window) / parts
        share = (divide(len(window) // parts) if divide else count) * parts
        labels = sum(int((batch["labels"] != -100).sum()) for batch in window)
        for batch in window:
            seen.clear()
            with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
                loss = task(model(batch["x"]), batch["labels"])
            if by_labels:
                loss = loss * int((batch["labels"] != -100).sum()) * share / labels
            if vcreg:
                scale = factor(step)
                loss = loss + sum(
                    scale * vcreg_fx.vcreg_loss(h.float(), layout=layout, **COEFFICIENTS)
                    for h, layout in seen
                )
            (loss / share).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model) - before


def agree(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    error = float((found - expected).norm() / expected.norm())
    assert error <= tolerance, f"relative error {error}"


def forget_accelerators() -> None:
    """Forget what an Accelerator set, which is the process's."""
    from accelerate import state

    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


def batches_of(k: int, complete: bool) -> int:
    """Batches for three steps of the optimizer."""
    return 3 * k if complete else 3 * k - k // 2
