"""Channel axes, checked by means that the inference does not use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from torch import nn

from placement_rules import Recording, Site, parse, record, resolve
from vcreg_fx.cli._model import load_model
from vcreg_fx.cli._zoo import zoo

QUICK = ["resnet18", "convnext_atto", "efficientnet_b0", "poolformer_s12"]
MORE = [
    "ghostnet_050", "mobilevit_xxs", "repvit_m0_9", "pvt_v2_b0",
    "densenet121", "vovnet39a", "nfnet_f0", "caformer_s18",
    "resnetv2_50", "mobilenetv3_small_050", "regnetx_002", "inception_v3", "rexnet_100",
    "edgenext_xx_small", "fastvit_t8", "mambaout_femto", "hgnetv2_b0", "starnet_s1", "dla34",
    "inception_next_atto", "focalnet_tiny_srf", "swiftformer_xs", "res2net50d", "dpn68",
    "selecsls42", "skresnet18", "mobilenetv4_conv_small", "tresnet_m", "xception41", "gernet_s",
]  # fmt: skip
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
CLASSIFIERS = [
    *QUICK,
    "ghostnet_050",
    "swin_tiny_patch4_window7_224",
    "deit_tiny_distilled_patch16_224",
]


def sites(recording: Recording, rule: str) -> list[Site]:
    return resolve(recording, parse(rule).require(recording))


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def two_sizes(name: str) -> Iterator[Recording]:
    """Recordings of one model at two input sizes, if it takes both."""
    for side in (256, 320):
        yield record(on_meta(name), (torch.empty(2, 3, side, side, device="meta"),))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_channel_axis_is_the_one_whose_size_stays(name: str) -> None:
    small, large = two_sizes(name)
    rule = "blocks" if name in {"densenet121", "vovnet39a", "inception_v3"} else "blocks | residual"
    for one, other in zip(sites(small, rule), sites(large, rule), strict=True):
        same = [axis for axis in range(len(one.shape)) if one.shape[axis] == other.shape[axis]]
        assert same[0] == 0
        assert one.layout.axis == other.layout.axis
        assert one.layout.axis in same[1:]
        if len(one.shape) == 4:
            assert len(same) == 2, f"{one.name}: {one.shape} and {other.shape}"


def check_heads(model: nn.Module) -> None:
    classifiers = model.get_classifier()
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    layers = [
        module
        for classifier in classifiers
        for module in classifier.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    found = sites(record(model), "head")
    assert found[-1].layout.axis == (1 if len(found[-1].shape) == 4 else len(found[-1].shape) - 1)
    for site in found:
        features = {getattr(m, "in_features", None) or m.in_channels for m in layers}
        assert site.channels in features, f"{site.name}: {site.channels} of {features}"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_at_the_head_it_has_the_classifiers_input_features(name: str) -> None:
    check_heads(on_meta(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_at_stage_outputs_it_has_timms_feature_channels(name: str) -> None:
    model = on_meta(name)
    wanted = {info["module"]: info["num_chs"] for info in model.feature_info}
    by_module = {}
    for site in sites(record(model), "stages"):
        for module in wanted:
            if site.path == module or site.path.startswith(f"{module}."):
                by_module[module] = site.channels
    if not by_module:
        pytest.skip("timm names other modules")
    assert by_module == {module: wanted[module] for module in by_module}


VIDEO = [
    "r3d_18", "swin3d_t",
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ("mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s")),
]  # fmt: skip


@pytest.mark.parametrize("name", VIDEO)
def test_videos(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    recording = record(model)
    found = sites(recording, "blocks")
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv3d))][-1]
    features = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    assert found[-1].channels == sites(recording, "head")[0].channels == features


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo("timm", everything=False))
def test_every_module_file_at_its_head(name: str) -> None:
    check_heads(load_model(name))
