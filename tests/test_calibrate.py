"""`calibrate`: coefficients that make VCReg as strong as it is wanted."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import vcreg_fx
from tests.models import SMALL, task_loss
from vcreg_fx.cli._app import app


def inserted(**config: object) -> tuple[nn.Module, Tensor]:
    build, shape = SMALL["resnet18"]
    torch.manual_seed(0)
    return vcreg_fx.insert(build(), "blocks", **config), torch.randn(shape)


@pytest.mark.parametrize("config", [{}, {"mode": "loss"}, {"convention": "algorithm1"}])
@pytest.mark.parametrize("ratio", [0.1, 3.0])
def test_the_ratio_is_reached_and_the_proportion_kept(config: dict[str, str], ratio: float) -> None:
    model, x = inserted(**config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    made = vcreg_fx.calibrate(model, x, task_loss, ratio)
    assert [row.ratio for row in made.after] == pytest.approx([ratio] * 8, rel=1e-4)
    for site in vcreg_fx.sites(model):
        assert site.alpha / site.beta == pytest.approx(0.64 / 0.08)
        assert made.coefficients[site.name] == {"alpha": site.alpha, "beta": site.beta}
    again = vcreg_fx.measure(model, x, task_loss)
    assert [row.ratio for row in again] == [row.ratio for row in made.after]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_the_step_that_follows_has_the_ratio() -> None:
    """At the last site, by the gradients of a real step: nothing of `measure` takes part."""
    x = torch.randn(16, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    vcreg_fx.insert(model, "modules('1')", example_inputs=(x,))
    vcreg_fx.calibrate(model, x, task_loss, ratio=0.2)
    found = []
    for scale in (1e-12, 1.0):  # a scale is positive
        vcreg_fx.set_loss_scale(model, scale)
        seen: list[Tensor] = []
        handle = model[0].register_forward_hook(
            lambda _, __, output, seen=seen: output.register_hook(seen.append) and None
        )
        task_loss(model(x)).backward()
        handle.remove()
        slope = 1 - torch.tanh(model[0](x)).square()
        found.append((seen[0] / slope).detach())  # the gradient at the output of tanh
    task, both = found
    assert float((both - task).norm() / task.norm()) == pytest.approx(0.2, rel=1e-6)


def test_coefficients_are_those_that_insert_takes() -> None:
    model, x = inserted()
    made = vcreg_fx.calibrate(model, x, task_loss)
    build, _ = SMALL["resnet18"]
    other = vcreg_fx.insert(build(), "blocks", coefficients=made.coefficients)
    for one, two in zip(vcreg_fx.sites(model), vcreg_fx.sites(other), strict=True):
        assert (one.alpha, one.beta) == pytest.approx((two.alpha, two.beta))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.layer(x))))


def test_a_site_that_is_called_twice_has_one_ratio() -> None:
    x = torch.randn(16, 6)
    model = vcreg_fx.insert(Twice(), "modules('layer')", example_inputs=(x,))
    made = vcreg_fx.calibrate(model, x, task_loss, ratio=0.3)
    assert len(made.after) == 2 and len(made.coefficients) == 1
    task = math.hypot(*(row.task for row in made.after))
    penalty = math.hypot(*(row.task * row.ratio for row in made.after))
    assert penalty / task == pytest.approx(0.3, rel=1e-4)


def test_it_prints_before_and_after() -> None:
    model, x = inserted()
    made = vcreg_fx.calibrate(model, x, task_loss, ratio=0.25)
    lines = str(made).splitlines()
    assert len(lines) == 2 + 8
    assert lines[-1].startswith("layer4.1:output") and lines[-1].endswith("0.25")


def test_where_no_coefficient_makes_the_ratio_nothing_is_changed() -> None:
    model, x = inserted()
    sites = vcreg_fx.sites(model)
    sites[-1].alpha = sites[-1].beta = 0.0
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    model.layer1.requires_grad_(False)
    before = [(site.alpha, site.beta) for site in sites]
    with pytest.raises(vcreg_fx.InsertionError) as caught:
        vcreg_fx.calibrate(model, x, task_loss)
    assert "layer4.1:output is satisfied, or its α and β are 0" in str(caught.value)
    assert "layer1.0:output saw no activation with a gradient" in str(caught.value)
    assert [(site.alpha, site.beta) for site in sites] == before
    with pytest.raises(vcreg_fx.InsertionError, match="no gradient of the task arrives at layer4"):
        vcreg_fx.calibrate(model, x, lambda output: (output * 0).sum())


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_ratios_that_are_none(ratio: float) -> None:
    model, x = inserted()
    with pytest.raises(ValueError, match="ratio="):
        vcreg_fx.calibrate(model, x, task_loss, ratio)


def test_what_has_a_ratio_or_nothing_cannot_be_calibrated() -> None:
    model, x = inserted(ratio=0.1)
    with pytest.raises(vcreg_fx.InsertionError, match="nothing to calibrate"):
        vcreg_fx.calibrate(model, x, task_loss)
    vcreg_fx.remove(model)
    with pytest.raises(vcreg_fx.InsertionError, match="was not inserted"):
        vcreg_fx.calibrate(model, x, task_loss)


def test_the_command_prints_what_insert_takes() -> None:
    arguments = ["measure", "timm/test_resnet", "--calibrate", "0.1", "--batch", "4"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    call = printed.output[printed.output.index("vcreg_fx.insert(") :]
    taken: dict[str, object] = {}

    class Taker:
        @staticmethod
        def insert(model: object, rule: str, coefficients: dict[str, object]) -> None:
            taken.update(rule=rule, coefficients=coefficients)

    eval(call, {"vcreg_fx": Taker, "model": None})
    data = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert taken["rule"] == "blocks"
    for name, values in data["coefficients"].items():
        assert taken["coefficients"][name] == pytest.approx(values, rel=1e-4)
    assert [row["ratio"] for row in data["after"]] == pytest.approx([0.1] * 4, rel=1e-3)
