"""Sites in a caller's arguments: what the caller passed is never written to."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

import vcreg_fx
from tests.models import relative_error
from vcreg_fx import rules

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    one: Tensor
    other: Any


@dataclass
class Record:
    one: Tensor
    other: Any
    more: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    one: Tensor
    other: Any


@dataclass
class Slotted:
    __slots__ = ("one", "other")
    one: Tensor
    other: Any


class Batch(UserDict):
    """As transformers' BatchFeature."""


KINDS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda h: {"one": h, "other": 3}, lambda v: v["one"]),
    "ordered dict": (lambda h: OrderedDict(one=h, other=3), lambda v: v["one"]),
    "user dict": (lambda h: Batch(one=h, other=3), lambda v: v["one"]),
    "list": (lambda h: [None, h], lambda v: v[1]),
    "tuple": (lambda h: (None, h), lambda v: v[1]),
    "named tuple": (lambda h: Pair(h, 3), lambda v: v.one),
    "dataclass": (lambda h: Record(h, 3), lambda v: v.one),
    "frozen": (lambda h: Frozen(h, 3), lambda v: v.one),
    "slots": (lambda h: Slotted(h, 3), lambda v: v.one),
    "model output": (lambda h: BaseModelOutput(last_hidden_state=h), lambda v: v[0]),
    "dict in a list": (lambda h: [{"one": h}, {"one": 3}], lambda v: v[0]["one"]),
    "list in a dict": (lambda h: {"many": [h, 3]}, lambda v: v["many"][0]),
    "dict in a tuple": (lambda h: ({"one": h}, 3), lambda v: v[0]["one"]),
    "list in a dataclass": (lambda h: Record(3, [h]), lambda v: v.other[0]),
}


class Head(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(4, 2)
        self.got: list[Any] = []

    def forward(self, given: Any, scale: float = 1.0) -> Tensor:
        self.got.append(given)
        return self.linear(KINDS[self.kind][1](given)) * scale


class Model(nn.Module):
    """Passes a structure that its caller may hold and read on."""

    def __init__(self, kind: str, *, by_name: bool = False) -> None:
        super().__init__()
        self.kind, self.by_name = kind, by_name
        self.stem, self.head = nn.Linear(4, 4), Head(kind)
        self.passed: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        given = KINDS[self.kind][0](self.stem(x))
        self.passed.append(given)
        if self.by_name:
            return self.head(scale=2.0, given=given)
        return self.head(given, 2.0)


def contents(value: Any) -> Any:
    """A structure as plain tuples that hold the same objects."""
    if isinstance(value, (dict, UserDict)):
        return type(value), tuple((key, contents(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(contents(item) for item in value)
    if isinstance(value, (Record, Frozen, Slotted)):
        return type(value), contents([value.one, value.other])
    return id(value)


def name_of(plain: nn.Module) -> str:
    """The site at the tensor in the argument of the model's head."""
    planned = vcreg_fx.plan(copy.deepcopy(plain), "head", example_inputs=(X,))
    (scope,) = planned.recording.calls("head")
    ((path, _),) = scope.inputs
    return f"head:input{rules.format_path(path)}"


def gradients(model: nn.Module, *, penalized: bool = False) -> list[Tensor | None]:
    model.zero_grad()
    loss = model(X).square().sum()
    if penalized:
        loss = loss + vcreg_fx.vcreg_loss(model.stem(X))
    loss.backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_caller_passes_is_not_written_to(kind: str, by_name: bool) -> None:
    plain = Model(kind, by_name=by_name).double()
    model = copy.deepcopy(plain)
    vcreg_fx.insert(model, rules.at(name_of(plain)), example_inputs=(X,))
    for training in (True, False):
        assert torch.equal(model.train(training)(X), plain.train(training)(X))
        h = KINDS[kind][1](model.passed[-1])
        assert type(model.passed[-1]) is type(model.head.got[-1]) is type(plain.passed[-1])
        assert "VCReg" not in type(h.grad_fn).__name__
        got = KINDS[kind][1](model.head.got[-1])
        assert ("VCReg" in type(got.grad_fn).__name__) is training
    model.train(), plain.train()
    assert relative_error(gradients(model), gradients(plain, penalized=True)) <= 1e-12


def test_a_callers_batch_is_as_it_was_after_a_step() -> None:
    features = (X * 1).requires_grad_()
    batch = {"images": [{"one": features, "name": "a"}], "labels": torch.arange(6)}

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, batch: dict[str, Any]) -> Tensor:
            return self.linear(batch["images"][0]["one"])

    model = Reading().double()
    rule = rules.at(":input[0]['images'][0]['one']")
    vcreg_fx.insert(model, rule, example_inputs=(batch,), layout="NC")
    before = contents(batch)
    model(batch).sum().backward()
    assert contents(batch) == before
    plain = features.grad.clone()
    features.grad = None
    vcreg_fx.remove(model)
    (model(batch).sum() + vcreg_fx.vcreg_loss(features)).backward()
    torch.testing.assert_close(plain, features.grad, rtol=1e-12, atol=1e-12)


def test_several_sites_in_one_argument() -> None:
    class Both(nn.Module):
        def forward(self, given: dict[str, Any]) -> Tensor:
            return given["a"].tanh() * given["rest"][0].sin()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(4, 4), nn.Linear(4, 4), Both()

        def forward(self, x: Tensor) -> Tensor:
            return self.both({"a": self.a(x), "rest": [self.b(x)]})

    plain = Two().double()
    model = copy.deepcopy(plain)
    rule = "at(\"both:input[0]['a']\", \"both:input[0]['rest'][0]\")"
    vcreg_fx.insert(model, rule, example_inputs=(X,))
    model(X).sum().backward()
    loss = plain(X).sum() + vcreg_fx.vcreg_loss(plain.a(X)) + vcreg_fx.vcreg_loss(plain.b(X))
    loss.backward()
    found, expected = ([p.grad for p in m.parameters()] for m in (model, plain))
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("how", ["same key", "other key", "removed", "not a tensor"])
def test_a_module_that_writes_to_its_argument_is_refused(how: str) -> None:
    """Its caller would read what was there before."""

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, given: dict[str, Any]) -> None:
            y = self.linear(given["x"])
            if how == "removed":
                del given["n"]
            given[{"same key": "x", "not a tensor": "n"}.get(how, "y")] = 4 if "not" in how else y

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Linear(4, 4), Writing()

        def forward(self, x: Tensor) -> Tensor:
            given = {"x": self.stem(x), "n": 3}
            self.block(given)
            return given.get("y", given["x"]) * given.get("n", 1)

    model = vcreg_fx.insert(Caller().double(), "at(\"block:input[0]['x']\")", example_inputs=(X,))
    with pytest.raises(vcreg_fx.InsertionError, match="block:input.*writes to an argument"):
        model(X)
    model.eval()(X)


def test_compiled_arguments_are_not_written_to() -> None:
    class Quiet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 4), Inner()

        def forward(self, x: Tensor) -> Tensor:
            given = {"many": [self.stem(x), 3]}
            y = self.head(given)
            return y * given["many"][0][:, :2]

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, given: dict[str, Any]) -> Tensor:
            return self.linear(given["many"][0])

    model = Quiet().double()
    vcreg_fx.insert(model, "at(\"head:input[0]['many'][0]\")", example_inputs=(X,))
    expected = gradients(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative_error(gradients(compiled), expected) <= 1e-12
