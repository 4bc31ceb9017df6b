"""Sites whose tensor nobody reads on: followed, refused, or reported."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vcreg_fx
from tests.models import relative_error

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def added(self, x: Tensor) -> Tensor:
        return x + self.linear(x.clone())


class InDict(Branch):
    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        d["x"] = self.added(d["x"])
        return d


class InList(Branch):
    def forward(self, held: list[Tensor]) -> list[Tensor]:
        held[0] = self.added(held[0])
        return held


class DictAndTensor(Branch):
    def forward(self, d: dict[str, Tensor]) -> Tensor:
        d["x"] = y = self.added(d["x"])
        return y


class Appends(Branch):
    def forward(self, held: list[Tensor]) -> Tensor:
        held.append(self.added(held[-1]))
        return held[-1]


class Held:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class InAttribute(Branch):
    def forward(self, held: Held) -> Tensor:
        held.x = self.added(held.x)
        return held.x


class Adds(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.linear(x.clone()))


class Augments(Branch):
    def forward(self, x: Tensor) -> Tensor:
        x += self.linear(x.clone())
        return x


class SetsItem(Branch):
    def forward(self, x: Tensor) -> Tensor:
        x[...] = self.added(x)
        return x


class AddsToAView(Branch):
    def forward(self, x: Tensor) -> Tensor:
        x.view(2, 12).add_(self.linear(x.clone()).view(2, 12))
        return x


def whole(x: Tensor) -> Tensor:
    return x


FOLLOWED = {
    InDict: (lambda h: {"x": h}, lambda held: held["x"]),
    InList: (lambda h: [h], lambda held: held[0]),
}
REFUSED = {
    DictAndTensor: (lambda h: {"x": h}, lambda held: held["x"]),
    Appends: (lambda h: [h], lambda held: held[-1]),
    InAttribute: (Held, lambda held: held.x),
    Adds: (whole, whole),
    Augments: (whole, whole),
    SetsItem: (whole, whole),
    AddsToAView: (whole, whole),
}


class Careless(nn.Module):
    """Calls its blocks and ignores what they return."""

    def __init__(
        self, block: Callable[[], nn.Module], make: Callable[[Tensor], Any], read: Any
    ) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([block(), block()])
        self.make, self.read = make, read

    def forward(self, x: Tensor) -> Tensor:
        held = self.make(self.stem(x))
        for block in self.blocks:
            block(held)
        return self.head(self.read(held))


RULE = "modules('blocks.0') | modules('blocks.1')"


@pytest.mark.parametrize("cls", FOLLOWED, ids=lambda cls: cls.__name__)
def test_objects_that_the_caller_reads_on_are_followed(cls: type[nn.Module]) -> None:
    model = Careless(cls, *FOLLOWED[cls]).double()
    plain = copy.deepcopy(model)
    vcreg_fx.insert(model, RULE, example_inputs=(X,))
    model(X).square().sum().backward()
    h, penalty = plain.stem(X), 0.0
    for block in plain.blocks:
        h = block.added(h)
        penalty = penalty + vcreg_fx.vcreg_loss(h)
    (plain.head(h).square().sum() + penalty).backward()
    found, expected = ([p.grad for p in m.parameters()] for m in (model, plain))
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_returned_values_that_nobody_reads_are_refused(cls: type[nn.Module]) -> None:
    model = Careless(cls, *REFUSED[cls]).double()
    with pytest.raises(vcreg_fx.PlacementError, match=r"would\s+(ever )?be read"):
        vcreg_fx.insert(model, RULE, example_inputs=(X,))
    assert type(model.blocks[0]) is cls


# Sites that no gradient reaches -----------------------------------------------------------------


class Two(nn.Module):
    """Two branches, of which one may be cut off from the loss."""

    def __init__(self, cut: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.cut = cut

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x).tanh()
        other = self.unused(h)
        return self.used(h), other.detach() if self.cut else other


def inserted(cut: bool = True, **config: Any) -> Two:
    model = Two(cut).double()
    rule = "modules('used') | modules('unused')"
    return vcreg_fx.insert(model, rule, example_inputs=(X,), **config)


def loss_of(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return outputs[0].square().sum() + outputs[1].square().sum()


def train(model: nn.Module, steps: int = 30, loss: Callable[..., Tensor] = loss_of) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(X)).backward()
        optimizer.step()


def test_a_site_that_no_gradient_reaches_is_reported_once_by_name() -> None:
    for model in (inserted(), copy.deepcopy(inserted())):
        with pytest.warns(UserWarning, match="no gradient has come back to unused:output,") as told:
            train(model)
        assert len(told) == 1 and told[0].filename == __file__


LOOPS: dict[str, Callable[[], None]] = {}


def loop(function: Callable[[], None]) -> Callable[[], None]:
    LOOPS[function.__name__] = function
    return function


@loop
def both_used() -> None:
    train(inserted(cut=False))


@loop
def losses_in_turn() -> None:
    model, turn = inserted(cut=False), iter(range(1000))
    train(model, loss=lambda outputs: outputs[next(turn) // 5 % 2].square().sum())


@loop
def a_frozen_part() -> None:
    model = inserted()
    model.stem.requires_grad_(False), model.unused.requires_grad_(False)
    train(model)


@loop
def a_part_in_eval_mode() -> None:
    model = inserted()
    model.unused.eval()
    train(model)


@loop
def a_teacher_with_gradients() -> None:
    teacher, student = inserted(cut=False), inserted(cut=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        target, _ = teacher(X)
        one, other = student(X)
        ((one - target.detach()).square().sum() + other.square().sum()).backward()
        optimizer.step()


@loop
def a_generator_in_the_step_of_the_discriminator() -> None:
    generator, discriminator = inserted(cut=False), nn.Linear(4, 1).double()
    of_g = torch.optim.SGD(generator.parameters(), lr=1e-3)
    of_d = torch.optim.SGD(discriminator.parameters(), lr=1e-3)
    for turn in range(60):
        made = sum(generator(X))
        optimizer = of_d if turn % 20 else of_g
        optimizer.zero_grad()
        discriminator(made.detach() if turn % 20 else made).sum().backward()
        optimizer.step()


@loop
def evaluation_in_train_mode() -> None:
    model = inserted(cut=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(15):
        with torch.no_grad():
            model(X)
        model(X)  # and one that is thrown away
        loss_of(model(X)).backward()
        optimizer.step()


@loop
def an_exception_between_forward_and_backward() -> None:
    model = inserted(cut=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(15):
        try:
            model(X)
            raise KeyError
        except KeyError:
            optimizer.step()
    train(model)


@loop
def optimizers_in_backward() -> None:
    model = inserted(cut=False)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=1e-3)
        parameter.register_post_accumulate_grad_hook(lambda _, o=optimizer: o.step())
    for _ in range(15):
        loss_of(model(X)).backward()


@loop
def accumulation() -> None:
    model = inserted(cut=False)
    vcreg_fx.set_loss_scale(model, accumulation_steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(12):
        for _ in range(4):
            (loss_of(model(X)) / 4).backward()
        optimizer.step()


@loop
def checkpointing() -> None:
    for reentrant in (True, False):
        model = inserted(cut=False)
        train(model, loss=lambda y: loss_of(y))  # noqa: PLW0108
        model = inserted(cut=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x = X.clone().requires_grad_()
        for _ in range(12):
            one, other = checkpoint(model, x, use_reentrant=reentrant)
            loss_of((one, other)).backward()
            optimizer.step()


@loop
def compiled() -> None:
    model = inserted()
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(12):
        run(X)[0].square().sum().backward()
        optimizer.step()


@loop
def loss_mode() -> None:
    model = inserted(mode="loss")
    train(model, loss=lambda outputs: outputs[0].sum() + vcreg_fx.penalty(model))


@pytest.mark.parametrize("name", LOOPS)
def test_loops_that_reach_all_sites_are_not_told(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*scale.*|.*None of the inputs.*")
        LOOPS[name]()


# Sites that have nothing to do ---------------------------------------------------------------


class Backbone(nn.Module):
    """A backbone of two blocks, and a head that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def ten_steps(model: nn.Module, call: Callable[[Tensor], Tensor]) -> list[str]:
    """Return what is said in twelve steps."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(12):
            optimizer.zero_grad()
            call(X.float()).square().sum().backward()
            optimizer.step()  # the line that is told of
    assert all(found.filename == __file__ for found in told)
    return [str(found.message) for found in told]


IDLE_RULE = "modules('first') | head"


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_in_eval_mode_is_reported_once(compiled):
    model = vcreg_fx.insert(Backbone().eval(), IDLE_RULE, example_inputs=(X.float(),))
    told = ten_steps(model, torch.compile(model, backend="eager") if compiled else model)
    if compiled:  # what passes compiled code is not noted
        assert told == []
        return
    (message,) = told
    assert message.startswith("VCReg has done nothing at any site in 10 steps of SGD: the model is")
    assert "eval mode" in message


def test_a_frozen_model_is_reported_once():
    model = vcreg_fx.insert(Backbone(), "head", example_inputs=(X.float(),))
    model.first.requires_grad_(False)
    model.second.requires_grad_(False)
    (message,) = ten_steps(model, model)
    assert "nothing before the sites is trained" in message


def test_a_site_that_is_never_run_is_reported_by_name():
    model = vcreg_fx.insert(Backbone(), IDLE_RULE, example_inputs=(X.float(),))
    (message,) = ten_steps(model, model.features)
    assert message.startswith("VCReg has done nothing at fc:input in 10 steps of SGD: no forward")


@pytest.mark.parametrize("mode", ["gradient", "loss"])
def test_sites_that_act_and_parts_that_are_frozen_are_no_matter(mode):
    model = vcreg_fx.insert(Backbone(), IDLE_RULE, example_inputs=(X.float(),), mode=mode)
    model.first.requires_grad_(False)

    def call(x: Tensor) -> Tensor:
        return model(x) + (vcreg_fx.penalty(model) if mode == "loss" else 0)

    assert ten_steps(model, call) == []
    assert ten_steps(model.eval(), call if mode == "gradient" else model) == []


def test_a_compiled_model_that_trains_is_no_matter():
    model = vcreg_fx.insert(Backbone(), IDLE_RULE, example_inputs=(X.float(),), interval=4)
    assert ten_steps(model, torch.compile(model, backend="eager")) == []
