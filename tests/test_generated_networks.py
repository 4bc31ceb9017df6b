"""Whole networks that Hypothesis draws: every site found, every gradient exact."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vcreg_fx
from tests.models import relative_error
from tests.networks import (
    BLOCKS,
    Block,
    Checkpointed,
    Decorated,
    Design,
    Form,
    Functions,
    Grads,
    Inherited,
    Listener,
    LoopInside,
    Mlp,
    Network,
    Part,
    ReturnsDataclass,
    SqueezeExcite,
    StageDesign,
    Truth,
    coefficients,
    designs,
    draws_noise,
    gradients,
    seed,
    tensors,
)

CONFIG = {"gamma": 1.5, "delta": 0.5}
RULES = (
    "residual",
    "blocks | residual | head",
    "blocks | downsample | residual",
    "blocks",
    "residual | head",
    "downsample | head",
    "downsample",
)
KINDS = [kind for kinds in BLOCKS for kind in kinds]


def state(network: nn.Module) -> list[Any]:
    """What forwards have written: buffers and attributes."""
    written = [(module.runs, module.aux) for module in network.modules() if hasattr(module, "runs")]
    return [*network.state_dict().values(), *(item for pair in written for item in pair)]


def same(ones: list[Any], others: list[Any]) -> bool:
    """Whether two lists hold the same tensors, bit for bit, and numbers."""
    return all(
        torch.equal(one, other) if isinstance(one, Tensor) else one == other
        for one, other in zip(ones, others, strict=True)
    )


def forward(network: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    seed(3)
    network.train(training)
    with torch.no_grad():
        return [output.clone() for output in tensors(network(x.clone()))]


def without_checkpointing(design: Design) -> Network:
    """The network, whose forwards run once: run again, one would take its penalties again."""
    network = design.build()
    for module in network.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = False
    return network


def close(found: Grads, expected: Grads) -> bool:
    return relative_error(found, expected) <= 1e-10


def truth_of(network: Network, x: Tensor, rules: set[str]) -> list[Truth]:
    """Ask in train mode: in eval mode a dropout returns the very tensor that it was given."""
    seed(2)
    with Listener(network, rules) as listener, torch.no_grad():
        network.train()(x.clone())
    return listener.truth


def check(design: Design, rule: str) -> None:
    """Insert by the rule, and hold everything against what the network says of itself."""
    plain, x = design.build(), design.x()
    rules = set(rule.split(" | "))
    expected = truth_of(without_checkpointing(design), x, rules)
    model = design.build()
    if not expected:
        with pytest.raises(vcreg_fx.PlacementError, match="selects nothing"):
            vcreg_fx.insert(model, rule, example_inputs=(x,))
        return

    planned = vcreg_fx.plan(model, rule, example_inputs=(x,))
    found = [
        Truth(
            site.path,
            site.position if site.form == "boundary" else "inside",
            site.layout.axis,
            site.calls,
        )
        for site in planned.sites
    ]
    assert found == expected
    apart = {site.name: coefficients(index) for index, site in enumerate(planned.sites)}
    planned.apply(coefficients=apart, **CONFIG)
    assert [name for name, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert list(model.state_dict()) == list(plain.state_dict())

    pair = [copy.deepcopy(each).float() for each in (model, plain)]  # where autocast changes a lot
    for training in (True, False):
        assert same(*(forward(each, x.float(), training=training) for each in pair))
        assert same(*map(state, pair))

    listener = Listener(reference := without_checkpointing(design), rules, **CONFIG)
    naive = gradients(reference, x, listener)
    untouched = gradients(design.build(), x)
    assert not close(untouched, naive)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert close(gradients(each, x), naive)
    vcreg_fx.remove(model)
    assert [type(module) for module in model.modules()] == [type(m) for m in plain.modules()]
    assert [set(vars(module)) for module in model.modules()] == [
        set(vars(module)) for module in plain.modules()
    ]
    assert same(gradients(model, x), untouched)


def check_networks(kind: type[Block], examples: int) -> None:
    """Check so many networks that have a block of a kind; a failure prints how to repeat it."""

    @settings(
        max_examples=examples,
        print_blob=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(design=designs(kind), rule=st.sampled_from(RULES))
    def run(design: Design, rule: str) -> None:
        check(design, rule)

    run()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_networks(kind: type[Block]) -> None:
    check_networks(kind, -(-200 // len(KINDS)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_many_networks(kind: type[Block]) -> None:
    check_networks(kind, -(-2_000 // len(KINDS)))


def test_networks_in_a_fresh_process(tmp_path: Path) -> None:
    form = Form(ndim=4, last=False, width=4, place=3, batch=2)
    kinds = (Inherited, Functions, Decorated, LoopInside, ReturnsDataclass, Checkpointed)
    parts = tuple(Part(kind, (Mlp, SqueezeExcite), draws_noise, inplace=True) for kind in kinds)
    design = Design(form, (StageDesign(None, parts, "group", repeats=2, saves=False),))
    model, x = design.build(), design.x()
    vcreg_fx.insert(model, "residual | head", example_inputs=(x,), **CONFIG)
    torch.save((model, x), tmp_path / "saved.pt")
    code = (
        "import sys, torch\n"
        "from tests.networks import gradients\n"
        "saved, found = sys.argv[1:]\n"
        "torch.save(gradients(*torch.load(saved, weights_only=False)), found)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved.pt"), str(tmp_path / "found.pt")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    assert close(torch.load(tmp_path / "found.pt"), gradients(model, x))
