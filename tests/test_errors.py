"""Bad input: a clear error, and a model that is exactly as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

import vcreg_fx
from tests.models import resnet18
from vcreg_fx import (
    ExampleInputsError,
    InsertionError,
    LayoutError,
    NoSiteError,
    RecordingError,
    RuleSyntaxError,
    VCRegConfig,
)


def fingerprint(model: nn.Module) -> list[object]:
    return [(type(m), sorted(m.__dict__), len(m._forward_hooks)) for m in model.modules()]


def refuses(
    model: nn.Module, error: type[Exception], match: str, *args: object, **kwargs: object
) -> None:
    before = fingerprint(model)
    lazy = any(nn.parameter.is_lazy(p) for p in model.parameters())
    state = {} if lazy else copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    with pytest.raises(error, match=match):
        vcreg_fx.insert(model, *args, **kwargs)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_the_same_site_twice() -> None:
    model = vcreg_fx.insert(resnet18(), "blocks")
    refuses(model, InsertionError, "layer1.0:output has VCReg already", "blocks")
    refuses(model, InsertionError, "has VCReg already", "head | blocks")
    assert len(vcreg_fx.sites(model)) == 8


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        ("block", "no rule 'block'. Did you mean 'blocks'.*The rules are:.*blocks"),
        ("head | block", "no rule 'block' in 'head . block'"),
        ("layer1", r"no rule 'layer1'. A module is named by modules\('layer1'\)"),
        ("layer1.0", r"A module is named by modules\('layer1.0'\)"),
        ("encoder.layers", r"A module is named by modules\('encoder.layers'\)"),
        ("layer1.0:output", r"A site is named by at\('layer1.0:output'\)"),
        ("at('layer1')", r'such as "layer1.0:output"\.$'),
        ("a" * 100_000, r"There is no rule 'a{200}…'"),
        (["blocks", "head"], 'not list. Several are joined by |: "blocks | head"'),
        (torch.nn.Linear, r"rules.modules\(Linear\)"),
        (torch.nn.Linear(1, 1), "Modules are named by their paths"),
        ("blocks +", "is not a rule"),
        ("blocks + head", "joined by"),
        ("'blocks'", "describes no rule"),
        ("downsample(steam=True)", "steam"),
        ("blocks(3)", "blocks"),
        ("__import__('os')", "no rule '__import__'"),
        (7, "not int"),
    ],
)
def test_unknown_rules(rule: object, match: str) -> None:
    refuses(resnet18(), RuleSyntaxError, match, rule)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"alpha": "0.1"}, ValueError, "alpha='0.1' must be a number"),
        ({"alpha": torch.tensor(0.1)}, ValueError, "must be a number, such as 0.1, not Tensor"),
        ({"alpha": None}, ValueError, "alpha=None must be a number"),
        ({"ratio": "0.1"}, ValueError, "ratio='0.1' must be a number"),
        ({"config": {"alpha": 1.0}}, TypeError, "is not a VCRegConfig. Coefficients are given by"),
        ({"config": 0.64}, TypeError, r"alpha=0.64, beta=0.08"),
    ],
)
def test_what_is_no_coefficient(given: dict, error: type[Exception], match: str) -> None:
    refuses(resnet18(), error, match, **given)


def test_a_plan_is_shown_as_its_table() -> None:
    plan = vcreg_fx.plan(resnet18())
    assert repr(plan) == str(plan) and "Conv2d" not in repr(plan)


def test_a_rule_that_selects_nothing() -> None:
    refuses(torchvision.models.vgg11(), NoSiteError, "plain stack")
    refuses(timm.create_model("resnet18", num_classes=0), NoSiteError, "without a head", "head")


def test_no_inferable_input() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    refuses(Nothing(), ExampleInputsError, "No example input can be worked out")
    wrong = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))
    refuses(wrong, ExampleInputsError, r"did not run on any input[\s\S]*example_inputs", "head")
    refuses(wrong, RecordingError, "failed on the given inputs", "head",
            example_inputs=(torch.zeros(1, 3, 9, 9),))  # fmt: skip


def test_wrapped_compiled_and_scripted_models() -> None:
    refuses(nn.DataParallel(resnet18()), InsertionError, "Insert into the model first, then wrap")
    refuses(nn.Sequential(nn.DataParallel(resnet18())), InsertionError, "0 is wrapped")
    refuses(torch.compile(resnet18()), InsertionError, "Insert first, then compile")
    compiled = resnet18()
    compiled.layer1.compile()
    refuses(compiled, InsertionError, "layer1 is compiled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(InsertionError, match="no Python forward"):
        vcreg_fx.insert(scripted, "head")


def test_a_ddp_wrapped_model(tmp_path: object) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(resnet18())
        with pytest.raises(InsertionError, match="Insert into the model first, then wrap"):
            vcreg_fx.insert(model)
    finally:
        torch.distributed.destroy_process_group()


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match="nn.Module"):
        vcreg_fx.insert("resnet18")


def test_a_forward_replaced_on_the_instance() -> None:
    model = resnet18()
    model.layer1[0].forward = model.layer1[0].forward
    refuses(model, InsertionError, r"layer1.0 .BasicBlock. was replaced on the instance")
    vcreg_fx.insert(model, "head")


def test_lazy_parameters() -> None:
    refuses(nn.Sequential(nn.LazyLinear(3)), RecordingError, "Run the model once")


def test_layouts_that_do_not_fit() -> None:
    refuses(
        resnet18(), LayoutError, "has 3 axes; layer1.0:output has shape", "blocks", layout="NLC"
    )
    refuses(resnet18(), LayoutError, "is not a layout", "blocks", layout="NHW")


def test_a_channel_axis_that_cannot_be_inferred() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.act(x)

    model = nn.Sequential(Tokens(), Tokens())
    x = torch.randn(2, 5, 6)
    refuses(
        model,
        LayoutError,
        "cannot be inferred with certainty.*Pass layout=",
        "blocks",
        example_inputs=(x,),
    )
    vcreg_fx.insert(model, "blocks", example_inputs=(x,), layout="NLC")
    assert [str(site.layout) for site in vcreg_fx.sites(model)] == ["NLC", "NLC"]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"demean": "both"}, "demean='both' must be one of"),
        ({"mode": "loss", "convention": "algorithm1"}, "gradient of no loss"),
    ],
)
def test_configurations(fields: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        VCRegConfig(**fields)
    with pytest.raises(ValueError, match=match):
        vcreg_fx.insert(resnet18(), **fields)


def test_unknown_fields_and_coefficients() -> None:
    with pytest.raises(TypeError, match="no field lambd.*alpha"):
        vcreg_fx.insert(resnet18(), lambd=1.0)
    model = resnet18()
    refuses(
        model, InsertionError, "names layer1.0:output, which is none of the 1 sites.*fc:input",
        "head", coefficients={"layer1.0:output": {"alpha": 1.0}},
    )  # fmt: skip
    refuses(
        model,
        InsertionError,
        "give alpha and beta",
        "head",
        coefficients={"fc:input": {"delta": 1.0}},
    )
    vcreg_fx.insert(model, "head")
    with pytest.raises(ValueError, match="alpha=-2"):
        vcreg_fx.sites(model)[0].alpha = -2


def test_nothing_to_read_or_scale() -> None:
    with pytest.raises(InsertionError, match="not inserted"):
        vcreg_fx.set_loss_scale(resnet18(), 2.0)
    with pytest.raises(InsertionError, match='mode="loss"'):
        vcreg_fx.penalty(vcreg_fx.insert(resnet18()))
    with pytest.raises(InsertionError, match="0 times"):
        vcreg_fx.get_config(resnet18())
    with pytest.raises(InsertionError, match="not inserted"):
        vcreg_fx.to_graph_module(resnet18())


def test_symbolic_tracing_in_train_mode_does_not_drop_vcreg_silently() -> None:
    relu = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    vcreg_fx.insert(relu, vcreg_fx.rules.at("1:output"), example_inputs=(torch.randn(2, 4),))
    with pytest.raises(TypeError, match="to_graph_module"):
        torch.fx.symbolic_trace(lambda x: relu[1].forward(x))  # noqa: PLW0108 (fx wants one)
    model = vcreg_fx.insert(resnet18(), "blocks")
    targets = [node.target for node in torch.fx.symbolic_trace(model).graph.nodes]
    assert targets.count(vcreg_fx.surgery.node_functions.vcreg) == 8
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    traced = torch.fx.symbolic_trace(model.eval())
    assert torch.equal(traced(x), model(x))
