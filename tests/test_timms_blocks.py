"""The blocks found, against timm's own numbering of a network's parts."""

from __future__ import annotations

import pytest
from timm.models._manipulate import group_with_matcher

import vcreg_fx
from vcreg_fx.cli._model import load_model
from vcreg_fx.cli._zoo import zoo

# docs/coverage.md says why: timm numbers other parts of these networks, or none.
OTHERWISE = {
    "cait_m36_384", "cpubone_b3", "crossvit_9_240", "davit_base", "densenet121", "dla34",
    "efficientformer_l1", "efficientformerv2_l", "efficientvim_m1", "efficientvit_b0",
    "efficientvit_m0", "fastvit_t8", "gcvit_base", "hrnet_w18", "levit_128", "lowformer_b0",
    "test_maxvit", "mobilevit_s", "mvitv2_base", "nasnetalarge", "pnasnet5large", "pvt_v2_b0",
    "repvit_m1", "shvit_s1", "vitamin_base_224", "csatv2", "caformer_b36", "pit_b_224", "vgg11",
}  # fmt: skip
QUICK = {"resnet18", "convnext_atto", "mixnet_l", "ghostnet_050", "test_vit", "volo_d1_224"}
NAMES = [
    pytest.param(name, marks=() if name.partition("/")[2] in QUICK else pytest.mark.slow)
    for name in zoo("timm", everything=False)
    if name.partition("/")[2] not in OTHERWISE
]


@pytest.mark.parametrize("name", NAMES)
def test_each_block_is_a_group_of_timms(name: str) -> None:
    model = load_model(name)
    groups = group_with_matcher(
        model.named_parameters(), model.group_matcher(coarse=False), reverse=True
    )
    used: set[object] = set()
    for site in vcreg_fx.plan(model, "blocks").sites:
        mine = {groups[key] for key in groups if key.startswith(f"{site.path}.")}
        assert len(mine) == 1, f"{site.path} lies in {len(mine)} groups"
        assert not mine & used, f"{site.path} shares its group with another block"
        used |= mine
    assert used


def test_quick_names_exist() -> None:
    assert {f"timm/{name}" for name in QUICK | OTHERWISE} <= set(zoo("timm", everything=False))
