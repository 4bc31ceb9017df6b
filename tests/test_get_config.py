"""What was inserted, as plain data that inserts it again."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

import vcreg_fx
from tests.models import resnet18


class Detector(nn.Module):
    """Two backbones, whose sites have the same names inside them, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = resnet18(), resnet18()
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


EXAMPLE = (torch.randn(2, 3, 32, 32),)


def inserted_in_parts() -> Detector:
    torch.manual_seed(0)
    model = Detector()
    vcreg_fx.insert(model.left, "blocks", alpha=0.1, coefficients={"layer1.0:output": {"beta": 3}})
    vcreg_fx.insert(model.right, "blocks & stage(3) | head", alpha=0.2, mode="loss")
    vcreg_fx.insert(model, "at('head:output')", alpha=0.3, example_inputs=EXAMPLE)
    return model


def values(model: nn.Module) -> dict[str, tuple[float, float]]:
    return {
        name: (v["alpha"], v["beta"])
        for config in vcreg_fx.get_configs(model)
        for name, v in config["coefficients"].items()
    }


def test_configs_of_what_was_inserted_through_modules() -> None:
    model = inserted_in_parts()
    own, left, right = configs = vcreg_fx.get_configs(model)
    assert list(own["coefficients"]) == ["head:output"]
    assert next(iter(left["coefficients"])) == "left.layer1.0:output"
    assert left["coefficients"]["left.layer1.0:output"] == {"alpha": 0.1, "beta": 3.0}
    assert list(right["coefficients"])[-1] == "right.fc:input"
    assert len(values(model)) == len(vcreg_fx.sites(model)) == 1 + 8 + 3
    assert vcreg_fx.get_config(model.left)["rule"] == "blocks"  # as seen from there
    with pytest.raises(vcreg_fx.InsertionError, match="3 times"):
        vcreg_fx.get_config(model)

    again = Detector()
    for config in json.loads(json.dumps(configs)):
        vcreg_fx.insert(again, **config, example_inputs=EXAMPLE)
    assert values(again) == values(model)
    assert {s.name for s in vcreg_fx.sites(again)} == set(values(model))
    again.load_state_dict(model.state_dict())
    for each in (model, again):
        (each(EXAMPLE[0]).square().sum() + vcreg_fx.penalty(each)).backward()
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_site_of_a_module_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    vcreg_fx.insert(model[0], "at(':output')", example_inputs=(torch.randn(3, 4),))
    config = vcreg_fx.get_config(model)
    assert (config["rule"], list(config["coefficients"])) == ("at('0:output')", ["0:output"])
    again = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    vcreg_fx.insert(again, **config)
    assert vcreg_fx.get_config(again) == config


def test_metrics_name_sites_as_seen_from_the_model() -> None:
    model = inserted_in_parts()
    model(EXAMPLE[0]).sum().backward()
    keys = {key for key in vcreg_fx.metrics(model) if key.endswith("/std")}
    assert keys == {f"vcreg/{name}/std" for name in values(model)}
    assert "vcreg/layer1.0:output/std" in vcreg_fx.metrics(model.left)


def test_wrapped_models_are_looked_through() -> None:
    model = vcreg_fx.insert(resnet18(), "blocks", alpha=0.1)
    config = vcreg_fx.get_config(model)
    for wrapped in (DataParallel(model), torch.compile(model, backend="eager")):
        assert vcreg_fx.get_config(wrapped) == config
        assert vcreg_fx.sites(wrapped) == vcreg_fx.sites(model)


def test_coefficients_of_some_sites() -> None:
    some = {"layer2.0:output": {"alpha": 0.5}, "layer1.1:output": {"beta": 0.25}}
    model = vcreg_fx.insert(resnet18(), "blocks", alpha=0.1, beta=0.2, coefficients=some)
    found = {site.name: (site.alpha, site.beta) for site in vcreg_fx.sites(model)}
    assert found.pop("layer2.0:output") == (0.5, 0.2)
    assert found.pop("layer1.1:output") == (0.1, 0.25)
    assert set(found.values()) == {(0.1, 0.2)}


def test_unknown_coefficients_are_an_error_with_near_names() -> None:
    model = resnet18()
    plan = vcreg_fx.plan(model, "blocks")
    unknown = {"layer2.0.output": {"alpha": 0.5}}
    with pytest.raises(
        vcreg_fx.InsertionError, match=r"names layer2.0.output, which[\s\S]*Near: layer2.0:output"
    ):
        plan.apply(coefficients=unknown)
    assert not vcreg_fx.sites(model)


def test_coefficients_do_not_reach_sites_of_other_insertions() -> None:
    model = Detector()
    vcreg_fx.insert(model.left, "at('fc:input')", alpha=0.1)
    vcreg_fx.insert(model.right, "at('fc:input')", coefficients={"fc:input": {"alpha": 5.0}})
    assert [site.alpha for site in vcreg_fx.sites(model)] == [0.1, 5.0]


@pytest.mark.parametrize("regularizer", ["vcreg", "variance"])
def test_apply_does_all_that_insert_does(regularizer: str) -> None:
    how = {
        "coefficients": {"layer2.0:output": {"alpha": 0.5}},
        "regularizer": regularizer, "delta": None, "mode": "loss",
    }  # fmt: skip
    one = vcreg_fx.insert(resnet18(), "blocks", vcreg_fx.VCRegConfig(beta=0.3), **how)
    other = vcreg_fx.plan(resnet18(), "blocks").apply(vcreg_fx.VCRegConfig(beta=0.3), **how)
    assert vcreg_fx.get_config(one) == vcreg_fx.get_config(other)


def test_the_words_for_a_group_will_do_in_one_process() -> None:
    words = "process group of ranks 0, 1"
    config = pickle.loads(pickle.dumps(vcreg_fx.VCRegConfig(sync=words)))
    assert config.sync == config.to_dict()["sync"] == words
    model = vcreg_fx.insert(nn.Sequential(nn.Linear(4, 4)), "at('0:output')", config)
    model(torch.randn(5, 4)).sum().backward()
    assert vcreg_fx.sites(model)[0].samples == 5
