"""Many threads insert into different models, while others run: nobody notices the others."""

from __future__ import annotations

import copy
import functools
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import vcreg_fx
from placement_rules import record
from placement_rules._torch import FAKE_LOGGER
from placement_rules.recording._record import keeping_randomness
from vcreg_fx import rules

# Whether this torch can be told that one thread does not compile.
ALONE = hasattr(torch._dynamo.eval_frame, "_use_eager_on_nested_compile")
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(self.norm(x))
        return torch.relu(x)


class Random(Block):
    """Draws numbers of every kind, and reads a value, so that it is recorded for real."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = random.random() + np.random.rand() + float(torch.rand(()))
        return x + self.linear(self.norm(x)) + 0 * drawn


class Net(nn.Module):
    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.Sequential(*(block() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


RULES: list[Callable[[], Any]] = [
    lambda: "blocks",
    lambda: "residual",
    lambda: "residual | head",
    lambda: rules.pattern(lambda x, y: torch.relu(x + y)),
]


def step(model: nn.Module) -> list[Tensor]:
    """Return the output and all gradients of a training step."""
    model.train().zero_grad()
    output = model(X)
    output.square().sum().backward()
    return [output, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def patchable() -> dict[str, Any]:
    """Return what a program that traces or records might change for the whole process."""
    names = ("__getattr__", "__call__", "__setattr__", "__getattribute__", "forward")
    states: dict[str, Any] = {name: getattr(nn.Module, name) for name in names}
    states |= {f"random.{name}": getattr(random, name) for name in ("random", "getrandbits")}
    states["fast path"] = torch.backends.mha.get_fastpath_enabled()
    states["filters"] = list(logging.getLogger(FAKE_LOGGER).filters)
    states["lifts"] = torch._C._only_lift_cpu_tensors()
    states["tracing"] = torch.fx._symbolic_trace.is_fx_tracing()
    states["dtype"] = torch.get_default_dtype()
    return states


def at_once(
    working: list[Callable[[], None]], beside: list[Callable[[threading.Event], None]]
) -> list[BaseException]:
    """Run work in a thread each, and others until all of it is done; return what was raised."""
    errors: list[BaseException] = []
    done, start = threading.Event(), threading.Barrier(len(working) + len(beside))

    def guarded(work: Callable[..., None], *given: threading.Event) -> None:
        try:
            start.wait()
            work(*given)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(work,)) for work in working]
    others = [threading.Thread(target=guarded, args=(work, done)) for work in beside]
    for thread in (*workers, *others):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    return errors


def test_eight_threads_insert_while_others_run() -> None:
    """All steps are bit for bit those of one thread alone, before, meanwhile and afterwards."""
    torch.manual_seed(0)
    plain = [Net(Random if place == 4 else Block) for place in range(8)]
    alone = [
        step(vcreg_fx.insert(copy.deepcopy(model), RULES[place % 4](), example_inputs=(X,)))
        for place, model in enumerate(plain)
    ]
    runner, layer = Net(), nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    with torch.no_grad():
        expected, before = [runner(X), layer(TOKENS)], patchable()
    drawn: list[float] = []

    def insert(place: int) -> None:
        for _ in range(3):
            model = copy.deepcopy(plain[place])
            vcreg_fx.insert(model, RULES[place % 4](), example_inputs=(X,))
            assert same(step(model), alone[place])
            vcreg_fx.remove(model)
            assert not any(hasattr(module, "vcreg_original") for module in model.modules())

    def run(done: threading.Event) -> None:
        while not done.is_set():
            with torch.no_grad():
                assert same([runner(X), layer(TOKENS)], expected)

    def draw(done: threading.Event) -> None:
        while not done.is_set():
            drawn.append(random.random())
            done.wait(1e-4)

    errors = at_once([functools.partial(insert, place) for place in range(8)], [run, run, draw])
    assert errors == []
    assert len(set(drawn)) == len(drawn) > 0
    assert patchable() == before


def beside(work: Callable[[], Any]) -> Any:
    """Return what another thread finds, at a time when this one is in the middle of something."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


class Asking(Net):
    """Asks in its forward what another thread sees at that time."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__()
        self.ask = [ask]

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(beside(self.ask[0]))
        return super().forward(x)

    answers: list[Any]


def test_a_recording_changes_nothing_that_other_threads_see() -> None:
    """Asked in the middle of a forward: functions, switches, logging, and compiled code, too."""
    runs: list[int] = []

    def backend(graph: Callable[..., Any], _: Any) -> Callable[..., Any]:
        return lambda *args: (runs.append(1), graph(*args))[1]

    twice = torch.compile(lambda x: x * 2, backend=backend)

    def ask() -> dict[str, Any]:
        states = patchable()
        del states["lifts"]  # which FakeTensorMode sets, and which changes no result
        note = logging.makeLogRecord({"thread": threading.get_ident()})
        states["filters"] = bool(logging.getLogger(FAKE_LOGGER).filter(note))
        count = len(runs)
        twice(X)
        states["compiled"] = len(runs) - count if ALONE else 1
        return states

    before, Asking.answers = ask(), []
    vcreg_fx.plan(Asking(ask), "residual", example_inputs=(X,))
    assert Asking.answers == [before] * 2


def test_random_numbers_of_others_are_not_drawn_twice() -> None:
    """What other threads drew meanwhile stays drawn; alone, all that was drawn is undone."""

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    with keeping_randomness():
        first = draw()
    if threading.active_count() == 1:
        assert draw() == first
    done = threading.Event()
    idle = threading.Thread(target=done.wait)
    idle.start()
    try:
        with keeping_randomness():
            first = draw()
        assert not set(draw()) & set(first)
    finally:
        done.set()
        idle.join()


def test_torchs_transformer_layers_are_recorded_as_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their fused ways, which hide residual adds, are not taken under watch; no switch is set."""
    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", None)
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for kwargs in ({}, {"src_key_padding_mask": padding}):
        recording = record(model, (TOKENS,), kwargs)
        assert len(rules.parse("residual").select(recording)) == 4
        names = {str(getattr(node.target, "__name__", "")) for node in recording.flat.nodes}
        assert not {name for name in names if "native_multi_head" in name or "_fwd" in name}
