"""The rules and their algebra, as objects and as strings."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

import vcreg_fx
from placement_rules import (
    Filter,
    NoSiteError,
    PlacementError,
    Recording,
    Rule,
    RuleSyntaxError,
    Scope,
    at,
    blocks,
    custom,
    downsample,
    each,
    every,
    first,
    head,
    last,
    leave_one_out,
    modules,
    parse,
    pattern,
    prefixes,
    register,
    residual,
    stage,
    stages,
)
from placement_rules.rules._named import _matches
from tests.test_placement import recording_of, select


def names(model: str, rule: str | Rule) -> list[str]:
    recording = recording_of(model)
    return [spot.name for spot in parse(rule).require(recording)]


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("tv/resnet50", 4),
        ("timm/resnet50", 4),
        ("tv/convnext_tiny", 4),
        ("timm/convnext_atto", 4),
        ("tv/swin_t", 4),
        ("timm/swin_t", 4),
        ("tv/efficientnet_b0", 5),
        ("timm/efficientnet_b0", 5),
        ("tv/vit_b_32", 1),
        ("timm/vit_tiny", 1),
    ],
)
def test_stages(model: str, count: int) -> None:
    found = names(model, "stages")
    assert len(found) == count
    whole = names(model, "blocks")
    assert [name for i in range(count) for name in names(model, f"blocks & stage({i})")] == whole
    assert found == [names(model, f"last(blocks & stage({i}), 1)")[0] for i in range(count)]


def test_stage_outputs_are_timms_features() -> None:
    for model in ("timm/resnet50", "timm/convnext_atto", "timm/swin_t"):
        info = recording_of(model).model.feature_info
        expected = [item["num_chs"] for item in info][-4:]
        assert [site.channels for site in select(model, "stages")] == expected


def test_a_stage_holds_its_downsampling_layer() -> None:
    assert names("timm/convnext_atto", "downsample & stage(1)") == ["stages.1.downsample.1:output"]
    assert names("timm/convnext_atto", "blocks & stage(-1)") == names(
        "timm/convnext_atto", stage(3)
    )
    assert len(names("timm/convnext_atto", "blocks - stage(2)")) == 6
    with pytest.raises(PlacementError, match="4 stages, numbered from 0"):
        names("timm/convnext_atto", "blocks & stage(4)")


def test_parts_of_a_rule() -> None:
    whole = names("tv/vit_b_32", "blocks")
    assert names("tv/vit_b_32", "every(blocks, 5)") == [whole[1], whole[6], whole[11]]
    assert names("tv/vit_b_32", every(blocks, 1)) == whole
    assert names("tv/vit_b_32", first("blocks", 3)) == whole[:3]
    assert names("tv/vit_b_32", "last(blocks, 3) | first(blocks, 1)") == [whole[0], *whole[-3:]]
    with pytest.raises(PlacementError, match="at least 1"):
        every(blocks, 0)


def test_modules_by_path_class_and_function() -> None:
    assert len(names("tv/vit_b_32", "modules('encoder.layers.*')")) == 12
    assert len(names("tv/vit_b_32", "modules('encoder.layers.*.mlp')")) == 12
    assert names("tv/vit_b_32", "modules('**.ln')") == ["encoder.ln:output"]
    by_class = names("tv/vit_b_32", modules(torchvision.models.vision_transformer.EncoderBlock))
    assert by_class == names("tv/vit_b_32", "blocks")
    picked = modules(lambda path, module: isinstance(module, nn.LayerNorm) and "ln_1" in path)
    assert len(names("tv/vit_b_32", picked)) == 12
    with pytest.raises(NoSiteError, match="no such module.*encoder.layers"):
        names("tv/vit_b_32", "modules('encoder.layer')")
    with pytest.raises(NoSiteError, match="was not called"):
        names("tv/vit_b_32", "modules('encoder.layers.encoder_layer_0.self_attention.out_proj')")


def test_at_names_sites() -> None:
    wanted = ["layer2.0:output", "fc:input", "layer1.0:add"]
    assert sorted(names("tv/resnet50", at(*wanted))) == sorted(wanted)
    assert names("tv/resnet50", "at('fc:input')") == ["fc:input"]
    with pytest.raises(PlacementError, match="Sites of layer1.0:.*layer1.0:add"):
        names("tv/resnet50", "at('layer1.0:added')")
    with pytest.raises(PlacementError, match="No module 'layer9'"):
        names("tv/resnet50", "at('layer9:output')")


def test_patterns() -> None:
    found = names("tv/resnet50", pattern(lambda x, f: torch.relu(x + f)))
    assert found == names("tv/resnet50", "blocks")
    twice = pattern(lambda x: x + x)
    with pytest.raises(NoSiteError, match="nowhere joined like this"):
        names("tv/resnet50", twice)
    with pytest.raises(NoSiteError, match="tanh occurs nowhere"):
        names("tv/resnet50", pattern(_tanh))
    with pytest.raises(PlacementError, match="must return one computed tensor"):
        pattern(lambda x: x)
    scaled = nn.Sequential(nn.Linear(4, 4), _Scale())
    x = torch.randn(3, 4)
    for number, count in ((2.0, 1), (3.0, 0)):
        rule = pattern(_times(number))
        recording = vcreg_fx.rules.record(scaled, (x,))
        assert len(rule.select(recording)) == count


def _tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def _times(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda h: h * number


class _Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


def test_series_for_studies() -> None:
    recording = recording_of("tv/resnet50")
    whole = names("tv/resnet50", "stages")

    def expanded(series: vcreg_fx.rules.Series) -> list[list[str]]:
        return [[spot.name for spot in rule.require(recording)] for rule in series.rules(recording)]

    assert expanded(each("stages")) == [[name] for name in whole]
    assert expanded(prefixes(stages)) == [whole[:1], whole[:2], whole[:3], whole]
    assert expanded(leave_one_out("stages")) == [
        [other for other in whole if other != name] for name in whole
    ]
    assert str(each("stages")) == "each('stages')"
    for rule in each("blocks").rules(recording):
        assert names("tv/resnet50", str(rule)) == names("tv/resnet50", rule)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("blocks | downsample", blocks | downsample),
        ("blocks & stage(2) | head", (blocks & stage(2)) | head),
        ("blocks & (stage(2) | head)", blocks & (stage(2) | head)),
        ("residual - blocks - head", (residual - blocks) - head),
        ("residual - (blocks - head)", residual - (blocks - head)),
        ("every(blocks | head, 2)", every(blocks | head, 2)),
        ("downsample(stem=True)", downsample(stem=True)),
        ("modules('a.*')", modules("a.*")),
        ("stage(-1)", stage(-1)),
        ("last(first(residual, 4), 2)", last(first(residual, 4), 2)),
    ],
)
def test_strings_and_objects_are_the_same(text: str, rule: Rule) -> None:
    assert str(rule) == text
    assert str(parse(text)) == text
    assert parse(rule) is rule


@pytest.mark.parametrize(
    "text", ["stage('one')", "every(blocks, 0)", "head(1)", "stage", "blocks()"]
)
def test_strings_that_are_no_rules(text: str) -> None:
    with pytest.raises(RuleSyntaxError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-" * 5000 + "1", "has 5000 signs, of which a rule may have 200"),
        ("|".join(["blocks"] * 100_000), "has 99999 signs"),
        ("(" * 90 + "blocks" + ")" * 89, "is not a rule"),
        ("not " * 99_999 + "1", "is not a rule"),
        ("-blocks", "a minus stands between two rules"),
        ("-'blocks'", "a minus stands between two rules"),
        ("blocks\udcff", "is not a rule: .*surrogates not allowed"),
        ("blocks\0", "is not a rule"),
    ],
)
def test_strings_that_could_hurt_are_refused_in_short(text: str, message: str) -> None:
    with pytest.raises(RuleSyntaxError, match=message) as caught:
        parse(text)
    assert len(str(caught.value).encode()) < 1000


def test_the_longest_rules_can_be_used() -> None:
    rule = parse("|".join(["head"] * 201))
    assert str(rule).count("head") == 201
    assert names("timm/vit_tiny", rule) == names("timm/vit_tiny", "head")
    assert len(parse(f"at({', '.join([repr('a-b.0:output')] * 5000)})").names) == 5000


PIECES = st.lists(st.sampled_from(["a", "b", ".", "*", "**"]), max_size=9).map("".join)


@given(PIECES, st.text("ab.", max_size=9))
def test_stars_are_those_of_a_regular_expression(pattern: str, path: str) -> None:
    wild = {"**": ".*", "*": r"[^.]*"}
    parts = [wild.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", pattern)]
    assert _matches(pattern, path) is (re.fullmatch("".join(parts), path) is not None)


def test_many_stars_do_not_go_back() -> None:
    """As regular expressions these would take longer than the age of the universe."""
    assert not _matches(".".join(["**"] * 40), "a" * 300)
    assert not _matches("*a" * 40 + "!", "a" * 300)
    assert _matches(".".join(["**"] * 40), "." * 300)


def test_rules_of_a_users_own() -> None:
    def attention_outputs(recording: Recording) -> list[tuple[Scope, fx.Node]]:
        return [
            (scope, scope.outputs[0][1])
            for scope in recording.scopes
            if type(scope.module).__name__ == "Attention"
        ]

    rule = custom(attention_outputs)
    assert len(names("timm/vit_tiny", rule)) == 12
    register("attention_outputs_of_this_test", rule)
    text = "attention_outputs_of_this_test & stage(0)"
    assert len(names("timm/vit_tiny", text)) == 12
    with pytest.raises(PlacementError, match="already"):
        register("blocks", rule)
    with pytest.raises(PlacementError, match="identifier"):
        register("my rule", rule)
    with pytest.raises(NoSiteError, match="no tensor of the recording"):
        names("timm/vit_tiny", custom(lambda recording: []))
    with pytest.raises(PlacementError, match="pairs of a scope and a node"):
        names("timm/vit_tiny", custom(lambda recording: [(recording.root, None)]))


def test_a_filter_joined_to_nothing_selects_by_itself() -> None:
    assert isinstance(stage(1), Filter)
    assert names("tv/resnet50", "stage(1)") == names("tv/resnet50", "blocks & stage(1)")


def test_explanations() -> None:
    model = timm.create_model("resnet18")
    planned = vcreg_fx.plan(model, "blocks")
    assert "a block: its own forward adds a residual" in planned.explain("layer1.0")
    assert "inside the block layer1.0" in planned.explain("layer1.0.conv1")
    assert "it contains blocks" in planned.explain("layer1")
    assert "no sibling of a block" in planned.explain("conv1")
    with pytest.raises(PlacementError, match="no module 'layer1.9'.*layer1.1"):
        planned.explain("layer1.9")
    assert "selected: fc:input" in vcreg_fx.plan(model, "head").explain("fc")
    assert "no tensor of it" in vcreg_fx.plan(model, "head").explain("layer1")
    both = vcreg_fx.plan(model, "head | blocks").explain("fc")
    assert "head: selected" in both and "blocks: no block" in both
    hrnet = timm.create_model("hrnet_w18_small")
    assert "contains a run of blocks" in vcreg_fx.plan(hrnet, "blocks").explain("stage2.0")


def test_few_samples_are_pointed_out() -> None:
    text = str(vcreg_fx.plan(timm.create_model("resnet18"), "head"))
    assert "fc:input: fewer samples than channels (n < d) in batches below 512" in text


HARD = [
    ("densenet121", "blocks", 4),
    ("vovnet39a", "blocks", 6),
    ("ese_vovnet19b_slim", "blocks", 4),
    ("inception_v3", "blocks", 11),
    pytest.param("inception_resnet_v2", "blocks", 40, marks=pytest.mark.slow),
    ("mobilenetv3_small_050", "blocks", 11),
    pytest.param("rexnet_100", "blocks", 16, marks=pytest.mark.slow),
    ("ghostnet_050", "blocks", 16),
    pytest.param("ghostnetv3_050", "blocks", 16, marks=pytest.mark.slow),
    ("davit_tiny", "blocks", 12),
    pytest.param("coat_tiny", "blocks", 14, marks=pytest.mark.slow),
    pytest.param("maxvit_tiny_rw_224", "blocks", 33, marks=pytest.mark.slow),
    ("res2net50d", "blocks", 16),
    ("cs3darknet_s", "blocks", 9),
    pytest.param("cait_xxs24_224", "blocks", 26, marks=pytest.mark.slow),
    ("xcit_nano_12_p16_224", "blocks", 14),
    pytest.param("volo_d1_224", "blocks", 20, marks=pytest.mark.slow),
    pytest.param("vit_base_r26_s32_224", "blocks", 20, marks=pytest.mark.slow),
    pytest.param("hrnet_w18_small", "blocks", None, marks=pytest.mark.slow),
    pytest.param("swinv2_tiny_window8_256", "blocks", 12, marks=pytest.mark.slow),
    pytest.param("beit_base_patch16_224", "blocks", 12, marks=pytest.mark.slow),
    ("resmlp_12_224", "blocks", 12),
    pytest.param("gmixer_12_224", "blocks", 12, marks=pytest.mark.slow),
    ("convmixer_768_32", "blocks", 32),
    pytest.param("nfnet_f0", "blocks", 12, marks=pytest.mark.slow),
    ("hrnet_w18_small", "downsample", 5),
    pytest.param("cait_xxs24_224", "head", 1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "rule", "count"), HARD)
def test_hard_families(name: str, rule: str, count: int | None) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    sites = vcreg_fx.plan(model, rule).sites
    if count is not None:
        assert len(sites) == count, [site.name for site in sites]
    assert not any("fuse_layers" in site.name or ".cpe" in site.name for site in sites)
