"""One model of each of timm's module files: the same forward, and the naive losses' gradient.

Float32 does not always tell: over two examples at one pixel, batch norms magnify rounding a
thousandfold, in the original as well. What misses 1e-5 there has to be right in float64.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import pytest
import timm
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.models import Adds, relative_error
from vcreg_fx import rules

QUICK = ["mobilenetv3_small_050", "tnt_s_patch16_224", "ese_vovnet19b_slim"]
AT_32 = """
coat_tiny
beit_base_patch16_224 cait_s24_224 convit_tiny convmixer_768_32 convnext_atto cpubone_s0
cs3darknet_s cspnext_s davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn68
edgenext_small efficientformerv2_s0 mixnet_s efficientvim_m1 efficientvit_b0 efficientvit_m0
eva02_tiny_patch14_224 fasternet_s fastvit_s12 focalnet_base_srf gcvit_tiny gemma4_vit_167m gernet_s
ghostnet_050 hardcorenas_a hgnet_tiny hiera_tiny_224 hieradet_small hrnet_w18 iformer_s
inception_next_atto lcnet_050 lcnetv2_small levit_384_s8 lowformer_b0 mambaout_tiny
maxvit_nano_rw_256 caformer_s18 gmlp_s16_224 mobilevit_s naflexvit_base_patch16_siglip
nest_tiny nextvit_small nf_seresnet26 pit_s_224 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnety_040_sgn
repghostnet_050 repvit_m1 res2net50d resnest14d resnet18 resnetv2_18 rexnet_100 selecsls42
legacy_senet154 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_s swin_s3_base_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tresnet_l twins_svt_base visformer_tiny
flexivit_small vit_base_r26_s32_224 vit_relpos_small_patch16_224 samvit_base_patch16
vitamin_small_224 volo_d1_224 xception xception41 xcit_nano_12_p8_224
""".split()  # noqa: SIM905
LARGER = {
    "csatv2": 64, "inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96,
    "nasnetalarge": 96, "pnasnet5large": 96, "efficientformer_l1": 224, "halonet26t": 256,
    "crossvit_9_240": 240, "mvitv2_tiny": 64,
}  # fmt: skip
WITHOUT_ADDS = {
    "ese_vovnet19b_slim", "densenet121", "rdnet_tiny", "selecsls42", "inception_v3", "inception_v4",
    "lcnet_050", "vgg11",
}  # fmt: skip
MODELS = [
    *((name, 32) for name in QUICK),
    *(pytest.param(name, 32, marks=pytest.mark.slow) for name in AT_32),
    *(pytest.param(name, side, marks=pytest.mark.slow) for name, side in LARGER.items()),
]


def build(name: str, side: int) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=5, img_size=side)
    except TypeError:  # convolutional networks take any size and no such argument
        return timm.create_model(name, num_classes=5)


def run(
    model: nn.Module,
    x: Tensor,
    penalties: list[Tensor] | None = None,
    watching: AbstractContextManager[object] | None = None,
) -> list[Tensor | None]:
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    with watching or nullcontext():
        outputs = outputs_of(model, x)
    loss = sum(output.square().mean() for output in outputs)
    (loss + sum(penalties or [])).backward()  # the forward above filled the list
    return [p.grad for p in model.parameters()]


def outputs_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [tensor for _, tensor in rules.leaves(model(x))]


def error_at_blocks(plain: nn.Module, inserted: nn.Module, x: Tensor) -> float:
    """The gradient's relative error; the naive penalties see what hooks see, when they see it."""
    penalties: list[Tensor] = []
    handles = []
    for site in vcreg_fx.plan(plain, "blocks", example_inputs=(x,)).sites:
        assert site.position == "output"

        def hook(_: nn.Module, args: object, output: object, site: rules.Site = site) -> None:
            h = rules.get_leaf(output, site.leaf).clone()  # it may be written to further down
            penalties.append(vcreg_fx.vcreg_loss(h, 2.0, 1.0, layout=str(site.layout)))

        handles.append(plain.get_submodule(site.path).register_forward_hook(hook))
    expected = run(plain, x, penalties)
    for handle in handles:
        handle.remove()
    return relative_error(run(inserted, x), expected)


def error_at_adds(plain: nn.Module, inserted: nn.Module, x: Tensor) -> float:
    """The gradient's relative error; the naive penalties are of the sums that torch computes."""
    adds = Adds(vcreg_fx.plan(plain, "residual", example_inputs=(x,)), alpha=2.0, beta=1.0)
    expected = run(plain, x, adds.penalties, adds)
    assert len(adds.penalties) == len(adds.layouts)
    return relative_error(run(inserted, x), expected)


@pytest.mark.parametrize("rule", ["blocks", "residual"])
@pytest.mark.parametrize(("name", "side"), MODELS)
def test_forward_and_gradient(name: str, side: int, rule: str) -> None:
    torch.manual_seed(0)
    plain, x = build(name, side), torch.randn(2, 3, side, side)
    try:
        inserted = vcreg_fx.insert(
            copy.deepcopy(plain), rule, example_inputs=(x,), alpha=2.0, beta=1.0
        )
    except vcreg_fx.NoSiteError:
        assert rule == "residual" and name in WITHOUT_ADDS
        return
    buffers = copy.deepcopy(plain.state_dict())
    for training in (False, True):
        outputs = []
        for model in (plain, inserted):
            model.load_state_dict(buffers)
            model.train(training)
            torch.manual_seed(3)
            with torch.no_grad():
                outputs.append(outputs_of(model, x))
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    error = error_at_adds if rule == "residual" else error_at_blocks
    if error(plain, inserted, x) > 1e-5:
        assert error(plain.double(), inserted.double(), x.double()) <= 1e-10
