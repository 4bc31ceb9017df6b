"""The papers' video models, and others of transformers, through one optimizer step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.models import relative_error
from vcreg_fx import rules

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "num_labels": 5,
}


def videomae() -> nn.Module:
    config = transformers.VideoMAEConfig(**SMALL, patch_size=16, num_frames=4)
    return transformers.VideoMAEForVideoClassification(config)


def vivit() -> nn.Module:
    config = transformers.VivitConfig(**SMALL, tubelet_size=[2, 16, 16], num_frames=4)
    return transformers.VivitForVideoClassification(config)


def timesformer() -> nn.Module:
    config = transformers.TimesformerConfig(**SMALL, patch_size=16, num_frames=4)
    return transformers.TimesformerForVideoClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(**SMALL, patch_size=16)
    return transformers.ViTForImageClassification(config)


def bert() -> nn.Module:
    sizes = {key: value for key, value in SMALL.items() if key != "image_size"}
    config = transformers.BertConfig(**sizes, vocab_size=50, max_position_embeddings=16)
    return transformers.BertForSequenceClassification(config)


def clip(batch: int = 4) -> Tensor:
    return torch.randn(batch, 4, 3, 32, 32)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]], int]] = {
    "videomae": (videomae, lambda: {"pixel_values": clip()}, 3),
    "vivit": (vivit, lambda: {"pixel_values": clip()}, 3),
    "timesformer": (timesformer, lambda: {"pixel_values": clip()}, 3),
    "vit": (vit, lambda: {"pixel_values": torch.randn(4, 3, 32, 32)}, 3),
    "bert": (bert, lambda: {"input_ids": torch.arange(32).view(4, 8)}, 3),
}


@pytest.mark.parametrize("rule", ["head", "blocks"])
@pytest.mark.parametrize("name", MODELS)
def test_one_optimizer_step_equals_the_naive_losses(name: str, rule: str) -> None:
    build, make_inputs, depth = MODELS[name]
    torch.manual_seed(0)
    model, inputs, labels = build().double(), make_inputs(), torch.tensor([0, 1, 2, 3])
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    planned = vcreg_fx.plan(model, rule)
    assert len(planned.sites) == (depth if rule == "blocks" else 1)
    assert all(site.form == "boundary" for site in planned.sites)

    naive, seen = copy.deepcopy(model), []
    for site in planned.sites:

        def hook(_: nn.Module, args: object, kwargs: object, output: object, site=site) -> None:
            source = output if site.position == "output" else (*args,)
            h = rules.get_leaf(source, site.leaf)
            seen.append(vcreg_fx.vcreg_loss(h, 2.0, 3.0, layout=str(site.layout)))

        naive.get_submodule(site.path).register_forward_hook(hook, with_kwargs=True)
    planned.apply(alpha=2.0, beta=3.0)

    outputs = []
    for each in (model, naive):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        each.train()
        torch.manual_seed(1)
        output = each(**inputs, labels=labels)
        loss = output.loss if each is model else output.loss + sum(seen)
        loss.backward()
        optimizer.step()
        outputs.append(output.logits)
    assert torch.equal(*outputs)
    found, expected = ([p.grad for p in each.parameters()] for each in (model, naive))
    assert relative_error(found, expected) <= 1e-12
    assert torch.nn.utils.parameters_to_vector(model.parameters()).isfinite().all()
    for one, other in zip(model.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
