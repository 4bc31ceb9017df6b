"""Warm-up and decay of α and β."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import vcreg_fx


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    config = {"alpha": 2.0, "beta": 0.5, "example_inputs": (torch.zeros(4, 6),)}
    vcreg_fx.insert(model, "modules('0')", **config)
    return vcreg_fx.insert(model, "head", **config)


def factors(schedule: vcreg_fx.CoefficientSchedule, model: nn.Module, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        assert all(
            (site.alpha, site.beta) == (2 * schedule.factor, 0.5 * schedule.factor)
            for site in vcreg_fx.sites(model)
        )
        found.append(schedule.factor)
        schedule.step()
    return found


def test_warm_up_and_decay() -> None:
    model = network()
    schedule = vcreg_fx.CoefficientSchedule(model, warmup=4, decay=3, total=10, final=0.1)
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(1, 4)]
    expected = [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, *falling, 0.1]
    assert factors(schedule, model, 12) == pytest.approx(expected)


def test_without_lengths_nothing_changes() -> None:
    model = network()
    assert factors(vcreg_fx.CoefficientSchedule(model), model, 3) == [1, 1, 1]
    assert factors(vcreg_fx.CoefficientSchedule(model, total=2), model, 4) == [1] * 4


def test_the_step_in_warm_up_has_no_penalty_and_the_next_has() -> None:
    model, x = network(), torch.randn(8, 6)
    plain = vcreg_fx.remove(network())
    plain.load_state_dict(model.state_dict())
    schedule = vcreg_fx.CoefficientSchedule(model, warmup=2)
    plain(x).square().mean().backward()
    expected = plain[0].weight.grad
    model(x).square().mean().backward()
    assert torch.allclose(model[0].weight.grad, expected)
    schedule.step()
    model.zero_grad()
    model(x).square().mean().backward()
    assert not torch.allclose(model[0].weight.grad, expected)


def test_resuming() -> None:
    model = network()
    schedule = vcreg_fx.CoefficientSchedule(model, warmup=4)
    schedule.peaks["0:output"] = (3.0, 0.0)
    schedule.step()
    saved = json.loads(json.dumps(schedule.state_dict()))
    other = network()
    resumed = vcreg_fx.CoefficientSchedule(other, warmup=4)
    resumed.load_state_dict(saved)
    assert vcreg_fx.sites(other)[0].alpha == 0.75 and vcreg_fx.sites(other)[1].alpha == 0.5
    with pytest.raises(vcreg_fx.InsertionError, match=r"\['0:output', '2:input'\]"):
        resumed.load_state_dict({"last_step": 0, "peaks": {"fc:input": [1, 1]}})


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"warmup": -1}, "warmup=-1 must be"),
        ({"decay": 3}, "give total="),
        ({"warmup": 5, "decay": 6, "total": 10}, "do not fit into total=10"),
        ({"warmup": 0.5}, "whole numbers"),
        ({"final": -1.0}, "final=-1.0"),
    ],
)
def test_lengths_that_are_none(lengths: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vcreg_fx.CoefficientSchedule(network(), **lengths)


def test_a_model_without_vcreg_has_nothing_to_schedule() -> None:
    with pytest.raises(vcreg_fx.InsertionError, match="not inserted"):
        vcreg_fx.CoefficientSchedule(nn.Linear(2, 2), warmup=3)
