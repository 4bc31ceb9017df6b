"""What planning and inserting take, counted in calls: nothing is done twice, all is linear."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType, FunctionType

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from placement_rules import record
from placement_rules.recording import _fast, _record, _recorder
from vcreg_fx.surgery import _source


class Block(nn.Module):
    """A block that adds to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(torch.relu(self.linear(self.norm(x))))
        return x * 2


class Blocks(nn.Sequential):
    """A plain network of small blocks."""

    def __init__(self, count: int) -> None:
        super().__init__(nn.Linear(8, 8), *(Block() for _ in range(count)), nn.Linear(8, 3))


class Loop(nn.Module):
    """A network whose own forward makes all of its adds, at one place."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def insert(model: nn.Module, rule: str) -> nn.Module:
    return vcreg_fx.plan(model, rule, example_inputs=(torch.zeros(4, 8),)).apply()


def calls_of(run: Callable[[], object]) -> int:
    """Return how many functions are called, Python's own and others."""
    counts: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        counts[event] += 1

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # which calls what is to be told of the end of other models
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return counts["call"] + counts["c_call"]


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (Blocks, "residual"),
        pytest.param(Blocks, "blocks", marks=pytest.mark.slow),
        pytest.param(Loop, "residual", marks=pytest.mark.slow),
    ],
)
def test_calls_grow_as_the_network(build: type[nn.Module], rule: str) -> None:
    insert(build(2), rule)  # whatever is done once in a process
    few, some, many = (calls_of(lambda n=n: insert(build(n), rule)) for n in (8, 16, 32))
    assert many - some < 2.3 * (some - few)  # twice as much; four times if it were quadratic


def test_a_plan_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass in eval mode, one in train mode, and none by apply."""
    runs: Counter[str] = Counter()

    class Counted(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            runs["train" if self.training else "eval"] += 1
            return super().forward(x)

    model = Counted(3)
    plan = vcreg_fx.plan(model, "residual", example_inputs=(torch.zeros(4, 8),))
    assert runs == {"eval": 1, "train": 1}

    def refuse(*_: object) -> None:
        raise AssertionError("recorded again")

    monkeypatch.setattr(_record, "_call", refuse)
    plan.apply()
    assert len(vcreg_fx.sites(model)) == 3
    assert runs == {"eval": 1, "train": 1}


@pytest.mark.parametrize("build", [Blocks, Loop])
def test_sources_are_read_once(build: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks there are: by the plan, by its trial, and when the class is made."""
    read: Counter[str] = Counter()
    init = _source.Source.__init__

    def counting(self: _source.Source, function: FunctionType) -> None:
        read[function.__qualname__] += 1
        init(self, function)

    monkeypatch.setattr(_source.Source, "__init__", counting)
    insert(build(12), "residual")
    (times,) = read.values()
    assert times <= 3


class Mixed(nn.Module):
    """The same function on tensors of other types, strides and modes, and results written to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = self.layers
        x = self.stem(x)
        x = x + a(x)
        x = x + b(x).mul_(2)  # not its twin's memory
        x = x + c(x.t().contiguous().t())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = x + d(x)
            y = e(x)
        assert y.dtype == torch.bfloat16
        return self.head(x + y + f(x.double().to(x.dtype)))


@pytest.mark.parametrize("build", [Mixed, lambda: Blocks(2)])
def test_remembered_results_are_those_of_torch(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All recorded tensors have the shapes, strides, types, devices and memory that they had."""
    model, x = build(), torch.zeros(8, 8)

    def described() -> list[object]:
        recording = record(model, (x,))
        storages: dict[int, int] = {}
        return [
            (
                node.name, tensor.shape, tensor.stride(), tensor.dtype, tensor.device,
                storages.setdefault(node.meta["storage"], len(storages)),
                "time" in node.meta and recording.write_after(node) is not None,
            )
            for node in recording.flat.nodes
            if isinstance(tensor := node.meta.get("val"), Tensor)
        ]  # fmt: skip

    found = described()
    monkeypatch.setattr(_fast, "_REMEMBERED", set())
    monkeypatch.setattr(_recorder, "another", lambda tensor: tensor.view_as(tensor))
    assert found == described()


def test_operations_of_blocks_that_are_alike_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 28 linear layers and layer norms, in both modes, three differ in what they are given."""
    made: list[Tensor] = []
    new = _fast._new
    monkeypatch.setattr(_fast, "_new", lambda *given: made.append(new(*given)) or made[-1])
    insert(Blocks(6), "residual")
    assert len(made) == 28 - 3
