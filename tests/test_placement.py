"""Exact counts and layouts: the papers' models, and the errors that explain themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn

from placement_rules import NoSiteError, Recording, Site, parse, record, resolve

MODELS: dict[str, Callable[[], nn.Module]] = {
    "tv/vit_b_32": torchvision.models.vit_b_32,
    "tv/convnext_tiny": torchvision.models.convnext_tiny,
    "timm/convnext_tiny": lambda: timm.create_model("convnext_tiny"),
    "timm/convnext_atto": lambda: timm.create_model("convnext_atto"),
    "tv/resnet50": torchvision.models.resnet50,
    "timm/resnet50": lambda: timm.create_model("resnet50"),
    "tv/swin_t": torchvision.models.swin_t,
    "timm/swin_t": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "tv/efficientnet_b0": torchvision.models.efficientnet_b0,
    "timm/efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "timm/mixer_s32": lambda: timm.create_model("mixer_s32_224"),
    "timm/deit_distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
    "timm/vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224"),
    "tv/vgg11": torchvision.models.vgg11,
    "tv/r3d_18": torchvision.models.video.r3d_18,
    "tv/mobilenet_v2": torchvision.models.mobilenet_v2,
}

COUNTS = [
    ("tv/vit_b_32", "head", 1, "NC"),
    ("tv/vit_b_32", "blocks", 12, "NLC"),
    ("tv/vit_b_32", "residual", 24, "NLC"),
    ("tv/convnext_tiny", "blocks", 18, "NCHW"),
    ("tv/convnext_tiny", "downsample", 3, "NCHW"),
    ("timm/convnext_tiny", "blocks", 18, "NCHW"),
    ("timm/convnext_tiny", "downsample", 3, "NCHW"),
    ("timm/convnext_atto", "VCReg1", 1, "NC"),
    ("timm/convnext_atto", "VCReg2", 12, "NCHW"),
    ("timm/convnext_atto", "VCReg3", 3, "NCHW"),
    ("timm/convnext_atto", "VCReg4", 15, "NCHW"),
    ("timm/convnext_atto", "blocks | downsample", 15, "NCHW"),
    ("timm/convnext_atto", "downsample(stem=True)", 4, "NCHW"),
    ("timm/convnext_atto", "VCReg4 - downsample", 12, "NCHW"),
    ("tv/resnet50", "blocks", 16, "NCHW"),
    ("tv/resnet50", "downsample", 3, "NCHW"),
    ("tv/resnet50", "blocks | downsample", 16, "NCHW"),
    ("tv/resnet50", "blocks & downsample", 3, "NCHW"),
    ("timm/resnet50", "blocks", 16, "NCHW"),
    ("timm/resnet50", "downsample", 3, "NCHW"),
    ("timm/resnet50", "blocks | downsample", 16, "NCHW"),
    ("timm/resnet50", "downsample(stem=True)", 4, "NCHW"),
    ("tv/swin_t", "blocks", 12, "NHWC"),
    ("tv/swin_t", "downsample", 3, "NHWC"),
    ("tv/swin_t", "residual", 24, "NHWC"),
    ("timm/swin_t", "blocks", 12, "NHWC"),
    ("timm/swin_t", "downsample", 3, "NHWC"),
    ("tv/efficientnet_b0", "blocks", 16, "NCHW"),
    ("timm/efficientnet_b0", "blocks", 16, "NCHW"),
    ("timm/mixer_s32", "blocks", 8, "NLC"),
    ("timm/deit_distilled", "head", 2, "NC"),
    ("timm/deit_distilled", "residual", 24, "NLC"),
    ("timm/vit_tiny", "blocks", 12, "NLC"),
    ("tv/r3d_18", "blocks", 8, "NCTHW"),
    ("tv/r3d_18", "head", 1, "NC"),
    ("tv/mobilenet_v2", "blocks", 17, "NCHW"),
]

NOTHING = [
    ("tv/vit_b_32", "downsample", "resolution is the same at all 12 blocks"),
    ("timm/vit_tiny", "downsample", "no downsampling layer between stages"),
    ("tv/vgg11", "blocks", "plain stack"),
    ("tv/vgg11", "residual", "plain stack"),
    ("tv/vgg11", "downsample", "no blocks"),
    ("tv/vgg11", "VCReg4", "plain stack"),
    ("timm/vit_tiny", "blocks & head", "none remains of both"),
]


@cache
def recording_of(name: str) -> Recording:
    with torch.device("meta"):
        return record(MODELS[name]())


def select(name: str, rule: str) -> list[Site]:
    recording = recording_of(name)
    return resolve(recording, parse(rule).require(recording))


@pytest.mark.parametrize(("name", "rule", "count", "layout"), COUNTS)
def test_counts_and_layouts(name: str, rule: str, count: int, layout: str) -> None:
    sites = select(name, rule)
    assert len(sites) == count
    assert {str(site.layout) for site in sites} == {layout}
    assert all(site.calls == 1 for site in sites)
    assert len({site.name for site in sites}) == count


@pytest.mark.parametrize(("name", "rule", "reason"), NOTHING)
def test_a_rule_that_selects_nothing_says_why(name: str, rule: str, reason: str) -> None:
    with pytest.raises(NoSiteError, match=reason):
        select(name, rule)


def test_names_are_paths_and_places() -> None:
    assert select("tv/resnet50", "head")[0].name == "fc:input"
    assert select("tv/resnet50", "blocks")[0].name == "layer1.0:output"
    names = [site.name for site in select("tv/vit_b_32", "residual")]
    assert names[:2] == [
        "encoder.layers.encoder_layer_0:add",
        "encoder.layers.encoder_layer_0:output",
    ]


def test_a_plain_container_never_owns_a_site() -> None:
    for name, owner in [
        ("timm/convnext_atto", "stages.1.downsample.1"),
        ("tv/convnext_tiny", "features.2.1"),
    ]:
        site = select(name, "downsample")[0]
        assert site.path == owner and site.form == "boundary"


def test_the_head_has_the_classifiers_input_features() -> None:
    for name in ("tv/resnet50", "timm/convnext_atto", "tv/swin_t", "tv/r3d_18", "tv/vgg11"):
        (site,) = select(name, "head")
        layer = recording_of(name).model.get_submodule(site.path)
        assert isinstance(layer, nn.Linear) and site.channels == layer.in_features


@pytest.mark.parametrize("name", ["timm/convnext_atto", "timm/resnet50", "timm/efficientnet_b0"])
def test_channels_of_the_last_block_are_timms_features(name: str) -> None:
    model = recording_of(name).model
    assert select(name, "blocks")[-1].channels == model.feature_info[-1]["num_chs"]


def test_the_channel_axis_does_not_change_with_the_input_size() -> None:
    for name in ("tv/resnet50", "timm/convnext_atto", "tv/swin_t"):
        other = record(recording_of(name).model, (torch.zeros(2, 3, 256, 320, device="meta"),))
        for rule in ("blocks", "downsample", "head"):
            resolved = resolve(other, parse(rule).require(other))
            for one, two in zip(select(name, rule), resolved, strict=True):
                assert one.channels == two.channels and one.layout == two.layout
                changed = [a for a in range(len(one.shape)) if one.shape[a] != two.shape[a]]
                assert one.layout.axis not in changed
