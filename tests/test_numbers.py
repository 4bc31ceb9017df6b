"""What happens at the limits of numbers, and with penalties and gradients that nobody takes."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from placement_rules import Layout
from tests.models import relative_error
from vcreg_fx import rules

LAYOUTS = {"NC": (400, 8), "NCHW": (4, 8, 10, 10), "NLC": (4, 100, 8)}


def at_input(layout: str, x: Tensor, **config: object) -> nn.Module:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    return vcreg_fx.insert(
        model, rules.modules("0"), layout=layout, example_inputs=(x,), alpha=1.0, beta=1.0, **config
    )


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss = (model(leaf) * 0).sum()
    if vcreg_fx.sites(model)[0].config.mode == "loss":
        loss = loss + vcreg_fx.penalty(model)
    (found,) = torch.autograd.grad(loss, leaf)
    return found


def expected(layout: str, x: Tensor) -> Tensor:
    leaf = x.double().requires_grad_()
    (found,) = torch.autograd.grad(vcreg_fx.vcreg_loss(leaf, 1.0, 1.0, layout=layout), leaf)
    return found


@pytest.mark.parametrize("mode", ["gradient", "loss"])
@pytest.mark.parametrize(("mean", "std"), [(1e4, 0.1), (1e6, 0.1), (1e5, 1.0), (1e2, 1e-3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_means_of_a_hundred_thousand_deviations(layout, mean, std, mode) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = [1] * len(LAYOUTS[layout])
    shape[Layout.parse(layout).axis] = 8
    around = torch.randn(8, dtype=torch.float64, generator=generator).view(shape) * mean
    x = torch.randn(LAYOUTS[layout], dtype=torch.float64, generator=generator) * std + around
    x = x.float()
    assert (
        relative_error([gradient(at_input(layout, x, mode=mode), x)], [expected(layout, x)]) < 1e-5
    )


def test_compiled_with_large_means() -> None:
    x = torch.randn(64, 8) * 0.1 + 1e4 * torch.linspace(-1, 1, 8)
    model = at_input("NC", x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((compiled(leaf) * 0).sum(), leaf)
    assert relative_error([found], [expected("NC", x)]) < 1e-5


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e25])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_cannot_be_computed_is_nan_and_counted(layout: str, bad: float) -> None:
    x = torch.randn(LAYOUTS[layout])
    x[1, 0] = bad
    model = at_input(layout, x)
    assert not gradient(model, x).isfinite().any()
    assert vcreg_fx.metrics(model)["vcreg/0:output/nonfinite"] > 0
    model = at_input(layout, x)
    gradient(model, x.nan_to_num(0, 0, 0).clamp(-5, 5))
    assert vcreg_fx.metrics(model)["vcreg/0:output/nonfinite"] == 0


def test_large_values_that_fit_are_right() -> None:
    x = torch.randn(64, 4) * 1e17
    assert relative_error([gradient(at_input("NC", x), x)], [expected("NC", x)]) < 1e-4


# torch.func -----------------------------------------------------------------------------------


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()


X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def ensemble(model: nn.Module) -> Tensor:
    parameters, buffers = torch.func.stack_module_state([model, copy.deepcopy(model)])
    call = lambda p, b: torch.func.functional_call(model, (p, b), (X,))  # noqa: E731
    return torch.func.vmap(call)(parameters, buffers)


def jacobian(model: nn.Module) -> Tensor:
    return torch.func.jacrev(model)(X)


def forward_jacobian(model: nn.Module) -> Tensor:
    return torch.func.jacfwd(model)(X)


def batched(model: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    output = model(x)
    rows = torch.eye(output.numel(), dtype=X.dtype).view(-1, *output.shape)
    return torch.autograd.grad(output, x, rows, is_grads_batched=True)[0]


@pytest.mark.parametrize("use", [ensemble, jacobian, forward_jacobian, batched])
def test_many_gradients_at_once_are_refused_in_training(use) -> None:
    plain = layers()
    model = vcreg_fx.insert(copy.deepcopy(plain), rules.at("0:output"), example_inputs=(X,))
    with pytest.raises(RuntimeError, match=r"0:output is in training under[\s\S]*model.eval\(\)"):
        use(model)
    assert torch.equal(use(model.eval()), use(plain))


# Penalties that nobody reads ------------------------------------------------------------------


class Seen(torch.autograd.Function):
    """The identity; its contexts live as long as the graphs that they are part of."""

    alive: ClassVar[weakref.WeakSet[object]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        Seen.alive.add(ctx)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


class Watched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Seen.apply(x)


def alive() -> int:
    """How many graphs of forward passes are alive."""
    gc.collect()
    return len(Seen.alive)


def forgetful(*, watched: bool = True) -> nn.Module:
    first = nn.Sequential(nn.Linear(7, 7), Watched() if watched else nn.Identity())
    model = nn.Sequential(first, nn.Linear(7, 2), nn.Linear(2, 2))
    rule = rules.modules("1") | rules.at("0.0:output")
    return vcreg_fx.insert(model, rule, example_inputs=(torch.randn(4, 7),), mode="loss")


def test_forgotten_penalties_are_told_once_and_dropped() -> None:
    model, x = forgetful(), torch.randn(4, 7)
    before = alive()
    model(x).sum().backward()
    assert alive() == before + 1
    with pytest.warns(UserWarning, match=r"At 2 sites.*vcreg_fx.penalty\(model\)") as told:
        model(x).sum().backward()  # the second forward pass tells
        assert len(told) == 1
        for _ in range(60):
            model(x).sum().backward()
        assert alive() == before + 1
    assert len(told) == 1
    model(x)
    vcreg_fx.penalty(model).backward()  # of that forward alone: the graphs of others are gone
    assert [len(site.passes.pending) for site in vcreg_fx.sites(model)] == [0, 0]


def test_penalties_without_any_backward_do_not_pile_up() -> None:
    model, x = forgetful(), torch.randn(4, 7)
    with pytest.warns(UserWarning, match="64 times since its penalties were last read"):
        for _ in range(70):
            model(x)
    assert {len(site.passes.pending) for site in vcreg_fx.sites(model)} == {64}


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def test_views_and_parts_before_one_reading_all_count() -> None:
    model, x = forgetful(), torch.randn(3, 4, 7)
    sum(model(part).sum() + vcreg_fx.penalty(model) for part in x).backward()
    expected = gradients(model)
    loss = sum(model(part).sum() for part in x)  # three views, one reading
    (loss + vcreg_fx.penalty(model)).backward()
    assert relative_error(gradients(model), expected) < 1e-6
    for part in x:  # accumulation, a reading in each
        (model(part).sum() + vcreg_fx.penalty(model)).backward()
    assert relative_error(gradients(model), expected) < 1e-6


def test_backward_passes_of_others_leave_penalties_behind_alone() -> None:
    """What one forward pass left unread does not cost another, whose backward is still to come."""
    model, x, y = forgetful(), torch.randn(4, 7), torch.randn(4, 7)
    (model(y).sum() + vcreg_fx.penalty(model)).backward()
    expected = gradients(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = model(x).sum() + vcreg_fx.penalty(model)
        waiting = model(y).sum()
        loss.backward()  # of the pass before
        model.zero_grad()
        model(x).detach()
        model(x)
        for site in vcreg_fx.sites(model):
            del site.passes.pending[1:]  # those of the two passes that are thrown away
        (waiting + vcreg_fx.penalty(model)).backward()
    assert relative_error(gradients(model), expected) < 1e-6


def test_compiled_code_tells_of_penalties_that_nobody_reads() -> None:
    model, x = forgetful(watched=False), torch.randn(4, 7)
    compiled = torch.compile(model, backend="aot_eager")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(20):
            compiled(x).sum().backward()
    texts = [str(warning.message) for warning in told]
    assert sum("which compiles the model anew for each number" in text for text in texts) == 2
    assert max(len(site.passes.pending) for site in vcreg_fx.sites(model)) <= 9


def test_loops_that_read_are_not_told() -> None:
    model, x = forgetful(), torch.randn(4, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            (model(x).sum() + vcreg_fx.penalty(model)).backward()
        for _ in range(3):  # two views
            (model(x).sum() + model(-x).sum() + vcreg_fx.penalty(model)).backward()
        for _ in range(3):  # two backward passes
            model(x).sum().backward(retain_graph=True)
            vcreg_fx.penalty(model).backward()
        model.eval()(x)
        with torch.no_grad():
            model.train()(x)
        model(x)
        assert vcreg_fx.penalty(model) > 0


# Gradients that pass a site by ----------------------------------------------------------------


class Keeper(nn.Module):
    """Returns its result, and keeps it where the caller looks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, held: list[Tensor]) -> Tensor:
        held[0] = held[0] + self.linear(held[0])
        return held[0]


class Careless(nn.Module):
    def __init__(self, careful: bool = False) -> None:
        super().__init__()
        self.keeper = Keeper()
        self.careful = careful

    def forward(self, x: Tensor) -> Tensor:
        held = [x]
        output = self.keeper(held)
        return output * 2 if self.careful else held[0] * 2


def test_a_site_that_gradients_pass_by_is_reported_once() -> None:
    model = Careless(careful=True)
    vcreg_fx.insert(model, rules.at("keeper:output"), example_inputs=(torch.randn(5, 4),))
    x = torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model(x).sum().backward()
        model(x)  # no backward: a branch that this step does not use
        model(x).sum().backward()
    model.careful = False
    with pytest.warns(UserWarning, match="keeper:output received a gradient, but not") as told:
        for _ in range(4):
            model(x).sum().backward()
    assert len(told) == 1
