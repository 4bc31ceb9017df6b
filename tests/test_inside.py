"""Sites in the middle of forwards that do more than compute: right, or refused with the reason."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import linecache
import pickle
import random
import sys
import threading
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vcreg_fx
from tests.models import Adds, relative_error
from vcreg_fx import InsertionError
from vcreg_fx.surgery import _source

SCALE = 2.0
CONFIG = {"alpha": 2.0, "beta": 1.0}


class Block(nn.Module):
    """Adds its residual in the middle; subclasses do something else besides."""

    factor = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.runs = 0
        self.aux: Tensor | None = None
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


class WritesAttributes(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = x + self.linear(x)
        self.aux = x.square().mean().detach()
        self.seen.append(type(x).__name__)
        return x * self.runs


class Autocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
            y = self.linear(x)
            with torch.autocast("cpu", enabled=False):
                x = x + (x @ self.linear.weight)
                x = x + y
        return x.tanh()


class PythonsRandomness(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x) * random.random()
        return x.tanh() * float(np.random.rand())


class ForkedRandomness(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            noise = torch.rand(x.shape, dtype=x.dtype)
        x = x + self.linear(x) * noise
        return x * torch.rand(x.shape, dtype=x.dtype)


class Globals(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x) * SCALE
        return x.tanh() * self.factor * type(self).factor


class Questions(Block):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or torch.is_autocast_enabled("cpu"):
            raise TypeError
        x = x + self.linear(x)
        if x.sum() > 1e9 or self.training is None:
            return x
        return x.tanh() if torch.is_grad_enabled() else x.tanh() * 1


class Arithmetic(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.linear(x)) / 2 % 5
        return x.T.contiguous().mT + 1


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


class Structures(Block):
    def forward(self, x: Tensor) -> Tensor:
        pair = Pair(x, self.linear(x))
        found = {"sum": pair.one + pair.other}
        return found["sum"].tanh()


class Inherited(Block):
    def forward(self, x: Tensor, *, twice: bool = True) -> Tensor:
        y = super().forward(x)
        return y * 2 if twice else y


class InheritedTwice(Inherited):
    def forward(self, x: Tensor) -> Tensor:
        y = super(InheritedTwice, self).forward(x, twice=False)  # noqa: UP008
        return (y + self.linear(y)).sin()


class Augmented(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.linear(x.clone())
        return x.tanh()


class AugmentedItem(Block):
    def forward(self, x: Tensor) -> Tensor:
        held = {"x": x.clone()}
        held["x"] += self.linear(x)
        return held["x"].tanh()


class Chained(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = (
            x.mul(1)
            .add(
                self.linear(x),
            )
            .sin()
        )
        return torch.cos(torch.add(y, self.linear(y))) if len(y) else x


class InMethods(Block):
    def branch(self, x: Tensor) -> Tensor:
        def scaled(y: Tensor) -> Tensor:
            return (x + self.linear(y)).sin()

        return scaled(x) * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).cos() + 1


class Checkpointed(InMethods):
    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.branch, x, use_reentrant=False)
        return y.cos() + 1


def plus(one: Tensor, other: Tensor) -> Tensor:
    return one + other


class WithHelper(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = plus(x, self.linear(x))
        return x.tanh()


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        return function(*args, **kwargs) * 2

    wrapper.marked = True
    return wrapper


class Decorated(Block):
    @doubled
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


class Loop(Block):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """Passes one place several times."""
        for _ in range(self.depth):
            x = x + self.linear(x.sin())
        return x.tanh()


class Comprehension(Block):
    def forward(self, x: Tensor) -> Tensor:
        branches = [x + self.linear(x * k) for k in range(1, 4)]
        return torch.stack(branches).prod(dim=0)


class Shapes(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x * 2 if x.shape[0] > 1 else x


class WithoutGradients(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        with torch.no_grad():
            y = x.exp()
        return x * y


class Mangled(Block):
    def __hidden(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.__hidden(x)
        return x.tanh()


class WithAssert(Block):
    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2, "rewritten by pytest"
        x = x + self.linear(x)
        return x.tanh()


def with_closure() -> type[Block]:
    offset = 0.5

    class Enclosed(Block):
        def forward(self, x: Tensor, scale: float = offset) -> Tensor:
            x = x + self.linear(x) * scale * offset
            return x.tanh()

    return Enclosed


class TwoInALine(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.linear(x)).sin() + self.linear(x)
        return x.tanh()


FORWARDS = [
    WritesAttributes, Autocast, PythonsRandomness, ForkedRandomness, Globals, Questions, Arithmetic,
    Structures, Inherited, InheritedTwice, Augmented, AugmentedItem, Chained, InMethods,
    Checkpointed, WithHelper, Decorated, Loop, Comprehension, Shapes, WithoutGradients, Mangled,
    WithAssert, with_closure(), *[TwoInALine][: _source.HAS_POSITIONS],
]  # fmt: skip
X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(cls: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(cls(), nn.Linear(4, 4), cls(), nn.Linear(4, 2)).double()


def seed(number: int) -> None:
    random.seed(number)
    torch.manual_seed(number)
    np.random.seed(number)


def gradients(
    model: nn.Module, watching: Adds | None = None, x: Tensor = X, **arguments: object
) -> list[Tensor | None]:
    model.zero_grad()
    for module in model.modules():
        module.runs = 0
    seed(1)
    with watching or contextlib.nullcontext():
        output = model(x, **arguments)
    loss = output.square().sum()
    if watching is not None:
        loss = loss + sum(watching.penalties)
    loss.backward()
    return [p.grad for p in model.parameters()]


def states(model: nn.Module) -> list[object]:
    return [
        (value.tolist() if isinstance(value, Tensor) else copy.copy(value))
        for module in model
        for name, value in sorted(vars(module).items())
        if name in {"runs", "aux", "seen"}
    ]


def exact(model: nn.Module, plain: nn.Module) -> None:
    planned = vcreg_fx.plan(plain, "residual", example_inputs=(X,))
    adds = Adds(planned, **CONFIG)
    reference = copy.deepcopy(plain)
    for module in reference:
        if type(module) is Checkpointed:  # which would compute the penalties again in backward
            module.__class__ = InMethods
    expected = gradients(reference, adds)
    assert len(adds.penalties) == len(adds.layouts)
    assert relative_error(gradients(model), expected) <= 1e-12


@pytest.mark.parametrize("demean", ["statistics", "activations"])
@pytest.mark.parametrize("cls", FORWARDS, ids=lambda cls: cls.__name__)
def test_forwards_that_do_more(cls: type[nn.Module], demean: str) -> None:
    plain = network(cls)
    before = states(plain)
    model = copy.deepcopy(plain)
    vcreg_fx.insert(model, "residual", example_inputs=(X,), demean=demean, **CONFIG)
    assert states(model) == before
    assert any(":add" in site.name for site in vcreg_fx.sites(model))
    if demean == "activations":  # whose forward is another on purpose
        assert all(grad is not None for grad in gradients(model))
        return
    for training in (True, False, True):
        outputs = []
        for each in (plain, model):
            seed(3)
            outputs.append(each.train(training)(X))
        assert torch.equal(*outputs)
        assert states(plain) == states(model)
    exact(model, plain)
    exact(copy.deepcopy(model), plain)
    if "<locals>" not in cls.__qualname__:
        exact(pickle.loads(pickle.dumps(model)), plain)
    vcreg_fx.remove(model)
    assert type(model[0]) is cls and not any(name.startswith("vcreg") for name in vars(model[0]))


def test_globals_and_class_attributes_are_read_at_every_step(monkeypatch) -> None:
    plain = network(Globals)
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    monkeypatch.setattr(Globals, "factor", -1.0)
    assert torch.equal(model(X), plain(X))
    exact(model, plain)


class Flags(Block):
    """Takes other ways after insertion, by an attribute and by an argument."""

    fast = False

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        x = x + self.linear(x)
        x = nn.functional.dropout(x, 0.5, self.training)
        x = x.exp() if self.fast else x.tanh()
        return x * 2 if double else x


def test_flags_and_arguments_may_change_after_insertion() -> None:
    plain = network(Flags)
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    assert vcreg_fx.sites(model)[0].name == "0:add"
    for fast in (False, True, False):
        model[0].fast = plain[0].fast = fast
        exact(model, plain)
        outputs = []
        for each in (model, plain):
            seed(5)
            outputs.append((each(X), each.eval()(X), each.train()[0](X, True), each[0](x=X)))
        assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    adds = Adds(vcreg_fx.plan(plain, 'at("0:add")', example_inputs=(X,)), **CONFIG)
    expected = gradients(plain[0], adds, double=True)
    assert relative_error(gradients(model[0], double=True), expected) <= 1e-12


def test_tensors_that_a_forward_keeps() -> None:
    class Keeping(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.linear(x)
            self.seen.append(x)
            return x * 2

    plain = network(Keeping)
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    assert all(model[at].seen == plain[at].seen == [] for at in (0, 2))
    adds = Adds(vcreg_fx.plan(plain, "residual", example_inputs=(X,)), **CONFIG)
    assert relative_error(gradients(model), gradients(plain, adds)) <= 1e-12
    for at in (0, 2):
        (mine,), (theirs,) = model[at].seen, plain[at].seen
        assert torch.equal(mine, theirs) and mine.requires_grad


def test_decorators_stay_around_the_new_forward() -> None:
    model = vcreg_fx.insert(network(Decorated), "residual", example_inputs=(X,))
    assert type(model[0]).forward.marked
    assert "vcreg(self, 'add', x + self.linear(x))" in type(model[0]).code


def test_source_graph_and_traceback_are_the_users() -> None:
    class Failing(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.linear(x)
            if len(x) == 5:
                raise ZeroDivisionError
            return x.tanh()

    model = nn.Sequential(Failing(), nn.Linear(4, 2)).double()
    vcreg_fx.insert(model, "residual", example_inputs=(X,))
    code = type(model[0]).code
    assert "            x = vcreg(self, 'add', x + self.linear(x))\n" in "        " + code.replace(
        "\n", "\n        "
    )
    targets = [str(node.target) for node in type(model[0]).graph.nodes]
    assert "linear" in targets and any("vcreg" in target for target in targets)
    with pytest.raises(ZeroDivisionError) as info:
        model(X[:5])
    last = traceback.extract_tb(info.tb)[-1]
    assert last.filename == __file__ and last.line == "raise ZeroDivisionError"


@pytest.mark.parametrize(
    "cls",
    [
        Block, InMethods, Augmented,
        *(pytest.param(cls, marks=pytest.mark.slow)
          for cls in (Loop, Inherited, Structures, Globals)),
    ],
)  # fmt: skip
def test_compiled_forwards_are_one_graph(cls: type[nn.Module]) -> None:
    plain = network(cls)
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X), plain(X))
    expected = gradients(model)
    found = gradients(compiled)
    assert relative_error(found, expected) <= 1e-12


def test_a_loop_is_told_apart_pass_by_pass() -> None:
    model = nn.Sequential(Loop(4), nn.Linear(4, 2)).double()
    rule = 'at("0:add_1", "0:add_2")'
    plain = copy.deepcopy(model)
    vcreg_fx.insert(model, rule, example_inputs=(X,), **CONFIG)
    assert "(None, 'add_1', 'add_2', None)" in type(model[0]).code
    adds = Adds(vcreg_fx.plan(plain, rule, example_inputs=(X,)), **CONFIG)
    assert relative_error(gradients(model), gradients(plain, adds)) <= 1e-12
    assert len(adds.penalties) == 2
    model[0].depth = 2  # fewer passes: those that are left
    model(X)
    model[0].depth = 5
    with pytest.raises(InsertionError, match="4 passes of a loop .* now makes more"):
        model(X)
    model.eval()(X)


def test_a_second_insertion_keeps_the_first() -> None:
    plain = network(InheritedTwice)
    names = [site.name for site in vcreg_fx.plan(plain, "residual", example_inputs=(X,)).sites]
    model = copy.deepcopy(plain)
    for name in names:
        vcreg_fx.insert(model, vcreg_fx.rules.at(name), example_inputs=(X,), **CONFIG)
    assert [site.name for site in vcreg_fx.sites(model)] == names and len(names) == 4
    exact(model, plain)


# Refused --------------------------------------------------------------------------------------


class ThrownAway(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.add_(self.linear(x.clone()))
        return x.tanh()


class ByName(Inherited):
    def forward(self, x: Tensor) -> Tensor:
        return Block.forward(self, x)


def hidden(one: Tensor, other: Tensor) -> Tensor:
    both = one + other
    return both.sin()


class HiddenInHelper(Block):
    def forward(self, x: Tensor) -> Tensor:
        return hidden(x, self.linear(x)).tanh()


class Twice(Block):
    def both(self, x: Tensor) -> Tensor:
        return (x + self.linear(x)).sin()

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.both(x)).cos()


class Kept:
    def __init__(self, function: object) -> None:
        self.function = function


def unwrappable(function):
    kept = Kept(function)

    @functools.wraps(function)
    def wrapper(*args: object) -> object:
        return kept.function(*args)

    return wrapper


class BadlyDecorated(Block):
    @unwrappable
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x)
        return x.tanh()


class Lambda(Block):
    forward = lambda self, x: (x + self.linear(x)).tanh()  # noqa: E731


namespace: dict[str, type[nn.Module]] = {}
exec(
    "class NoSource(Block):\n"
    "    def forward(self, x):\n"
    "        x = x + self.linear(x)\n"
    "        return x.tanh()\n",
    {**globals()},
    namespace,
)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (ThrownAway, r"the value of 'x.add_\(self.linear\(x.clone\(\)\)\)' .* is thrown away"),
        (ByName, "ByName.forward calls forward in a way that cannot be redirected"),
        (HiddenInHelper, "computed in hidden, a function that is not the module's"),
        (Twice, "its place in both is passed 2 times in one call"),
        (BadlyDecorated, "a decorator of forward keeps it elsewhere than in a closure"),
        (Lambda, "it is a lambda"),
        (namespace["NoSource"], "forward has no source file"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_refused_with_the_reason(cls: type[nn.Module], reason: str) -> None:
    model = nn.Sequential(cls(), nn.Linear(4, 2)).double()
    with pytest.raises(InsertionError, match=reason):
        vcreg_fx.insert(model, "residual", example_inputs=(X,))
    assert type(model[0]) is cls
    vcreg_fx.insert(model, "blocks", example_inputs=(X,))


# Files ----------------------------------------------------------------------------------------

SOURCE = """
from __future__ import annotations
import torch


class Block(torch.nn.Module):
\tdef __init__(self):
\t\tsuper().__init__()
\t\tself.linear = torch.nn.Linear(4, 4)  # «ü»

\tdef forward(self, x: Undefined) -> Undefined:
\t\tx = "ü" and x + self.linear(x)
\t\treturn x.tanh()
"""


def load(path: Path, name: str) -> type[nn.Module]:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Block


def test_tabs_other_letters_and_postponed_annotations(tmp_path, monkeypatch) -> None:
    path = tmp_path / "written_with_tabs.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    cls = load(path, "written_with_tabs")
    plain = network(cls)
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    exact(model, plain)
    data = pickle.dumps(model)
    exact(pickle.loads(data), plain)

    path.write_text("\n\n" + SOURCE, encoding="utf-8")  # lines moved: the same function
    cls = load(path, "written_with_tabs")
    vcreg_fx.insert(network(cls), "residual", example_inputs=(X,))
    pickle.loads(data)

    path.write_text(SOURCE.replace(".tanh()", ".sin()"), encoding="utf-8")
    with pytest.raises(InsertionError, match="has changed since it was imported"):
        vcreg_fx.insert(network(cls), "residual", example_inputs=(X,))
    load(path, "written_with_tabs")
    with pytest.raises(InsertionError, match="source has changed since VCReg was inserted"):
        pickle.loads(data)


def test_classes_of_a_notebook() -> None:
    name = "<ipython-input-7-0123456789ab>"
    source = SOURCE.replace("\t", "    ").replace("from __future__ import annotations\n", "")
    source = source.replace(": Undefined) -> Undefined", ")")
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, object] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), space)
    plain = network(space["Block"])
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    exact(model, plain)


@pytest.mark.parametrize("cls", [Block, Loop, Augmented, InheritedTwice, Decorated, Chained])
def test_without_columns(cls: type[nn.Module], monkeypatch) -> None:
    """As in Python 3.10, which notes no columns: a line that holds one such call is enough."""
    monkeypatch.setattr(_source, "HAS_POSITIONS", False)
    plain = network(cls)
    model = vcreg_fx.insert(copy.deepcopy(plain), "residual", example_inputs=(X,), **CONFIG)
    exact(model, plain)


def test_without_columns_two_calls_in_a_line_are_ambiguous(monkeypatch) -> None:
    monkeypatch.setattr(_source, "HAS_POSITIONS", False)
    model = network(TwoInALine)
    with pytest.raises(InsertionError, match="line .* is ambiguous: 2 could be meant"):
        vcreg_fx.insert(model, "residual", example_inputs=(X,))


# Threads --------------------------------------------------------------------------------------


def test_threads_insert_while_others_run() -> None:
    """Nothing is patched for the process: eight threads insert, and three models run meanwhile."""
    patched = {name: getattr(nn.Module, name) for name in dir(nn.Module) if not name.endswith("__")}
    names = ("__getattr__", "__call__", "__setattr__", "__getattribute__")
    patched |= {name: getattr(nn.Module, name) for name in names}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    plain = [network(cls) for cls in FORWARDS if "<locals>" not in cls.__qualname__][:8]
    inserted = [copy.deepcopy(model) for model in plain]
    layers = [nn.TransformerEncoderLayer(8, 2, batch_first=True).eval() for _ in range(3)]
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    expected = [layer(tokens) for layer in layers]
    errors: list[BaseException] = []
    done = threading.Event()

    def insert(model: nn.Module) -> None:
        try:
            for _ in range(5):
                vcreg_fx.insert(model, "residual", example_inputs=(X,), **CONFIG)
                vcreg_fx.remove(model)
            vcreg_fx.insert(model, "residual", example_inputs=(X,), **CONFIG)
        except BaseException as error:
            errors.append(error)

    def run(layer: nn.Module, output: Tensor) -> None:
        try:
            while not done.is_set():
                torch.testing.assert_close(layer(tokens), output)
        except BaseException as error:
            errors.append(error)

    runners = [
        threading.Thread(target=run, args=pair) for pair in zip(layers, expected, strict=True)
    ]
    inserters = [threading.Thread(target=insert, args=(model,)) for model in inserted]
    for thread in (*runners, *inserters):
        thread.start()
    for thread in inserters:
        thread.join()
    done.set()
    for thread in runners:
        thread.join()
    assert errors == []
    assert {name: getattr(nn.Module, name) for name in patched} == patched
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    for model, reference in zip(inserted, plain, strict=True):
        exact(model, reference)
