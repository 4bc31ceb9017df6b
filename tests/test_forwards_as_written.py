"""Residual adds however a forward is written: found in the source and exact, or refused."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import subprocess
import sys
import types

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.models import relative_error
from tests.test_inside import CONFIG, Block, X, exact, gradients, network, plus
from vcreg_fx import InsertionError
from vcreg_fx.surgery import _source

RIGHT: list[type[nn.Module]] = []
COMPILED = []
REFUSED: list[tuple[type[nn.Module], str]] = []


def right(cls: type[nn.Module]) -> type[nn.Module]:
    RIGHT.append(cls)
    return cls


def compiled(cls: type[nn.Module]) -> type[nn.Module]:
    quick = cls.__name__ in {"Argument", "CompilesItself", "Conditional", "LambdaInside"}
    COMPILED.append(cls if quick else pytest.param(cls, marks=pytest.mark.slow))
    return right(cls)


def refused(reason: str):
    def note(cls: type[nn.Module]) -> type[nn.Module]:
        REFUSED.append((cls, reason))
        return cls

    return note


# Decorators -----------------------------------------------------------------------------------


class Within(contextlib.ContextDecorator):
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def without_wraps(function):
    def inner(self, x):
        return function(self, x) * 2

    return inner


def kept_in_a_default(function):
    @functools.wraps(function)
    def inner(self, x, _function=function):
        return _function(self, x) * 2

    return inner


def adding(function):
    @functools.wraps(function)
    def inner(self, x):
        y = function(self, x)
        y = y + self.linear(y)
        return y.cos()

    return inner


@right
class ContextDecorator(Block):
    @Within()
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


@compiled
class GradientDecorator(Block):
    @torch.enable_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


@right
class NotCompiled(Block):
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


@compiled
class CompilesItself(Block):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


@right
class ForScripts(Block):
    @torch.jit.export
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).tanh()

    @torch.jit.unused
    def branch(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).sin()


@compiled
class WithoutWraps(Block):
    @without_wraps
    @Within()
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


@refused("a decorator of forward keeps it elsewhere than in a closure")
class KeptInADefault(Block):
    @kept_in_a_default
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


@refused("it is computed in inner, outside of the methods of its class")
class Adding(Block):
    @adding
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


# Functions in functions -----------------------------------------------------------------------


@compiled
class NestedTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        def outer(y: Tensor) -> Tensor:
            def inner(z: Tensor) -> tuple[Tensor, int]:
                return x + self.linear(z), 3

            return inner(y)[0].sin()

        return outer(x).tanh()


@compiled
class LambdaInside(Block):
    def forward(self, x: Tensor) -> Tensor:
        branch = lambda y: (y + self.linear(y)).sin()  # noqa: E731
        return branch(branch(x)).tanh()


@right
class Comprehensions(Block):
    def forward(self, x: Tensor) -> Tensor:
        parts = {k: x + self.linear(x * k) for k in (1, 2)}
        more = torch.stack(list(y.sin() + self.linear(y) for y in parts.values()))  # noqa: C400
        return more.prod(dim=0)


@right
class Generator(Block):
    def parts(self, x: Tensor):
        for k in (1, 2, 3):
            yield x + self.linear(x) * k

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(list(self.parts(x))).prod(dim=0)


@refused("in a function that hides self")
class Hidden(Block):
    def forward(self, x: Tensor) -> Tensor:
        def branch(self: nn.Module, y: Tensor) -> Tensor:
            return y + self.linear(y)

        return branch(self, x).tanh()


@refused("it is computed in made, a function that is not the module's")
class MadeEarlier(Block):
    """The function was written in a method that has ended: rewriting that one would do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = self.make()

    def make(self):
        def made(module: nn.Module, x: Tensor) -> Tensor:
            y = x + module.linear(x)
            return y.sin()

        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self, x).tanh()


# Expressions ----------------------------------------------------------------------------------


@compiled
class Conditional(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = x + self.linear(x) if self.linear is not None else x
        if (z := None or y.sin() + self.linear(y)) is not None:
            return z.tanh()
        return y


@compiled
class ManyOnOneLine(Block):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x), self.linear(x.sin())
        y = x + a + b + 1; z = (x + a) + (y + a); return (z).tanh()  # noqa: E702  # fmt: skip


@right
class OverManyLines(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = x \
            + \
            self.linear(x)  # fmt: skip
        return (
            y
            # with a (comment
            + self.linear(
                y,
            )
        ).tanh()


@right
class OtherLetters(Block):
    def forward(self, x: Tensor) -> Tensor:
        größe = x  # noqa: PLC2401
        y = ("😀«ü»", größe + self.linear(größe), "😀")[1]; z = y + self.linear(y)  # noqa: E702  # fmt: skip
        return z.tanh()


@compiled
class Argument(Block):
    def weigh(self, *sums: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(scale)
        return sums[0] * scale, scale + y

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        a, b = self.weigh(*[x + y, x], scale=torch.add(input=x, other=y, alpha=2))
        return (a * b).tanh()


@right
class OtherAdds(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = operator.add(x, self.linear(x)).sin()
        x = x.__add__(self.linear(x)).sin()
        x = sum([self.linear(x)], x).sin()
        return self.linear(x).add_(x).tanh()


@right
class AugmentedItems(Block):
    def forward(self, x: Tensor) -> Tensor:
        held = [x.clone()]
        held[-1] += self.linear(x)
        return held[-1].tanh()


several = "one call in forward computes several tensors like it, of which it returns one at most"


@refused(several)
class Sum(Block):
    def forward(self, x: Tensor) -> Tensor:
        return sum([x, self.linear(x)]).tanh()


@refused(several)
class Reduced(Block):
    def forward(self, x: Tensor) -> Tensor:
        branches = [x, self.linear(x), self.linear(x.sin())]
        return functools.reduce(plus, branches).tanh()


def sum_of(*terms: Tensor) -> Tensor:
    return sum(terms)


@refused(several)
class SumInHelper(Block):
    def forward(self, x: Tensor) -> Tensor:
        return sum_of(x, self.linear(x)).tanh()


@refused("whose value is something else")
class Listed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return list(map(torch.add, [x], [self.linear(x)]))[0].tanh()  # noqa: RUF015


# Methods --------------------------------------------------------------------------------------


class Mixin:
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) + self.linear(x)).cos()


@compiled
class WithMixin(Mixin, Block):
    pass


class Left(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (x + self.linear(x)).sin()


class Right(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (x + self.linear(x * 2)).sin()


@right
class Diamond(Left, Right):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (x + self.linear(x * 3)).cos()


def written_outside(self: nn.Module, x: Tensor) -> Tensor:
    x = x + self.linear(x)
    return x.tanh()


@compiled
class Assigned(Block):
    forward = written_outside


@compiled
class FoundInManyWays(Block):
    def one(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return (x + self.linear(x) * scale).sin()

    two = one

    def three(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).cos()

    @staticmethod
    def both(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def forward(self, x: Tensor) -> Tensor:
        x = functools.partial(self.two, scale=2.0)(x)
        x = {"three": self.three}["three"](x)
        return self.both(x, self.linear(x)).tanh()


@compiled
class __Private(Block):
    """Private names, of which those of a class with underscores lose these."""

    def __branch(self, __x: Tensor) -> Tensor:
        return (__x + self.linear(__x)).sin()

    def forward(self, x: Tensor) -> Tensor:
        def again(y: Tensor) -> Tensor:
            return self.__branch(y) + self.linear(y)

        return again(x).tanh()


@right
class ByItsClass(Block):
    def one(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).sin()

    def two(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).cos()

    def forward(self, x: Tensor) -> Tensor:
        return type(self).one(self, self.__class__.two(self, x)) * 2


@right
class ByAProperty(Block):
    both: Tensor

    @property
    def branch(self) -> nn.Module:
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)).tanh()


@refused("calls one in a way that cannot be redirected")
class Bound(Block):
    def __init__(self) -> None:
        super().__init__()
        self.bound = functools.partial(self.one)

    def one(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).sin()

    def forward(self, x: Tensor) -> Tensor:
        return self.bound(x) * 2


@refused("it is computed in merge, a function that is not the module's")
class ClassMethod(Block):
    @classmethod
    def merge(cls, x: Tensor, y: Tensor) -> Tensor:
        z = x + y
        return z.sin()

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x, self.linear(x)).tanh()


@refused("it is computed in hook, which is called from outside of forward")
class InAHook(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (args[0] + output).sin()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@refused("where a method's first parameter no longer names the module")
class Rebound(Block):
    def forward(self, x: Tensor) -> Tensor:
        module, self = self, 3  # noqa: PLW0642
        x = x + module.linear(x) * self
        return x.tanh()


# ----------------------------------------------------------------------------------------------


def inserted(plain: nn.Module) -> nn.Module:
    model = copy.deepcopy(plain)
    return vcreg_fx.insert(model, "residual", example_inputs=(X,), **CONFIG)


# In Python 3.10, where several adds stand in one line, or another function adds.
NEED_COLUMNS = [ManyOnOneLine, OtherLetters, OtherAdds]


@pytest.mark.parametrize("cls", RIGHT, ids=lambda cls: cls.__name__)
def test_right(cls: type[nn.Module]) -> None:
    plain = network(cls)
    if cls in NEED_COLUMNS and not _source.HAS_POSITIONS:
        with pytest.raises(InsertionError, match="is ambiguous"):
            inserted(plain)
        return
    model = inserted(plain)
    assert any(":add" in site.name for site in vcreg_fx.sites(model))
    for training in (True, False):
        assert torch.equal(plain.train(training)(X), model.train(training)(X))
    plain.train(), model.train()
    exact(model, plain)


@pytest.mark.parametrize("cls", COMPILED, ids=lambda cls: cls.__name__)
def test_compiled(cls: type[nn.Module]) -> None:
    model = inserted(network(cls))
    torch._dynamo.reset()
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative_error(gradients(whole), gradients(model)) <= 1e-12


def test_outputs_of_a_forward_that_compiles_itself() -> None:
    """A site at a module's border is not lost where an outer compilation inlines its forward."""
    plain = network(CompilesItself)
    model = vcreg_fx.insert(copy.deepcopy(plain), "blocks", example_inputs=(X,), **CONFIG)
    assert all(site.position == "output" for site in vcreg_fx.sites(model))
    expected = gradients(model)
    torch._dynamo.reset()
    assert relative_error(gradients(torch.compile(model, backend="aot_eager")), expected) <= 1e-12
    assert relative_error(gradients(plain), expected) > 1e-3


@pytest.mark.parametrize(("cls", "reason"), REFUSED, ids=lambda item: getattr(item, "__name__", ""))
def test_refused(cls: type[nn.Module], reason: str) -> None:
    model = nn.Sequential(cls(), nn.Linear(4, 2)).double()
    with pytest.raises(InsertionError, match=reason if _source.HAS_POSITIONS else "."):
        vcreg_fx.insert(model, "residual", example_inputs=(X,))
    assert type(model[0]) is cls


@pytest.mark.parametrize("cls", [*NEED_COLUMNS, *(cls for cls, _ in REFUSED)])
def test_refused_without_columns(cls: type[nn.Module], monkeypatch) -> None:
    monkeypatch.setattr(_source, "HAS_POSITIONS", False)
    model = network(cls)
    with pytest.raises(InsertionError):
        inserted(model)
    assert type(model[0]) is cls


def test_vmap_inside_is_recorded() -> None:
    class Masked(Block):
        def forward(self, x: Tensor) -> Tensor:
            rows = torch.arange(len(x))
            seen = torch.vmap(lambda row: row >= 0)(rows)
            x = x + self.linear(x) * seen[:, None]
            return x.tanh()

    plain = network(Masked)
    exact(inserted(plain), plain)


def test_under_a_tracing_function() -> None:
    """As debuggers and coverage tools set one."""
    lines = []

    def trace(frame: types.FrameType, event: str, _: object):
        if frame.f_code.co_filename == __file__:
            lines.append(event)
        return trace if frame.f_code.co_filename == __file__ else None

    plain = network(FoundInManyWays)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        model = inserted(plain)
        model(X)
    finally:
        sys.settrace(before)
    assert "line" in lines
    exact(model, plain)


@pytest.mark.slow
def test_without_asserts() -> None:
    """Under ``python -O`` functions are compiled in another way."""
    code = (
        "from tests.test_forwards_as_written import *\n"
        "from tests.test_inside import WithAssert\n"
        "assert False\n"
        "plain = network(WithAssert)\n"
        "error = relative_error(gradients(inserted(plain)), gradients(plain))\n"
        "print(len(vcreg_fx.sites(inserted(plain))), error > 1e-3)\n"
    )
    command = [sys.executable, "-O", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["2", "True"], found.stderr
