"""Writes to a site's tensor that no recording has shown: an error that names the site."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.models import relative_error

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.mul_(2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.linear(x)
        self.kept.append(y)
        return y


class Model(nn.Module):
    """Writes to the output of its block, but not when it is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Linear(4, 2)
        self.write: Callable[[Tensor], Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.write is not None and self.training:
            self.write(x)
        return self.head(x)


def inserted(rule: str = "blocks", **config: Any) -> Model:
    return vcreg_fx.insert(Model().double(), rule, example_inputs=(X,), **config)


def train(model: Model) -> None:
    loss = model(X).square().sum()
    if vcreg_fx.sites(model)[0].config.mode == "loss":
        loss = loss + vcreg_fx.penalty(model)
    loss.backward()


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda x: x.mul_(2),
    "item": lambda x: x.__setitem__(0, 0.0),
    "a view of views": lambda x: x.view(2, 12)[:, 1:].t()[2].zero_(),
    "scripted": scripted,
    "a view": lambda x: x[:, 1].mul_(2),
    "functional": lambda x: nn.functional.relu(x, inplace=True),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_in_the_second_step_names_the_site(write: str) -> None:
    model = inserted()
    train(model)
    model.write = WRITES[write]
    with pytest.raises(RuntimeError, match="VCReg's site block:output"):
        train(model)
    model.eval()(X)
    model.write = lambda x: WRITES[write](x.clone())
    train(model.train())


def test_a_write_to_what_a_module_holds_names_the_sites() -> None:
    model = inserted("blocks | residual")

    def write(x: Tensor) -> None:
        model.block.kept.append(x)
        del x
        model.block.kept[-1][0] = 0.0

    model.write = write
    with pytest.raises(RuntimeError, match="VCReg's site block:output"):
        train(model)


def test_a_write_behind_the_model_names_the_site() -> None:
    model = nn.Sequential(Block(), Block()).double()
    vcreg_fx.insert(model, "blocks", example_inputs=(X,))
    output = model(X)
    with pytest.raises(RuntimeError, match="VCReg's site 1:output"):
        output /= 0.1


@pytest.mark.parametrize("backend", ["fast", "naive"])
def test_a_write_to_what_the_module_kept_names_the_site(backend: str) -> None:
    """Nothing but the site has saved the tensor, so that the model by itself would train."""

    class Later(Model):
        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x) + 1
            if self.write is not None:
                self.write(self.block.kept[-1])
            return self.head(y)

    plain = Later().double()
    model = copy.deepcopy(plain)
    vcreg_fx.insert(model, "blocks", example_inputs=(X,), backend=backend)
    plain.write = model.write = lambda x: x.mul_(2)
    plain(X).sum().backward()
    with pytest.raises(RuntimeError, match="VCReg's site block:output was written to in place"):
        train(model)


def test_loss_mode_names_the_site() -> None:
    model = inserted(mode="loss")
    train(model)
    model.write = WRITES["mul_"]
    with pytest.raises(RuntimeError, match="VCReg's site block:output was written to in place"):
        train(model)


def test_the_naive_loss_is_right_all_the_same() -> None:
    model = inserted(mode="loss", backend="naive")
    plain = vcreg_fx.remove(copy.deepcopy(model))
    plain.write = model.write = WRITES["mul_"]
    train(model)
    penalty = vcreg_fx.vcreg_loss(X + plain.block.linear(X))
    (plain(X).square().sum() + penalty).backward()
    found, expected = ([p.grad for p in m.parameters()] for m in (model, plain))
    assert relative_error(found, expected) <= 1e-12


def test_other_errors_of_a_backward_pass_stay_as_they_are() -> None:
    model = inserted()
    loss = model(X).square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
