"""Every residual add of the libraries' models is planned, and exact through a training step."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import vcreg_fx
from tests.models import relative_error
from vcreg_fx import rules
from vcreg_fx.cli._row import coverage_of
from vcreg_fx.cli._zoo import zoo

# Where branches are concatenated or the layers are a plain stack, nothing is added.
WITHOUT_ADDS = {
    "timm/densenet121", "timm/inception_v3", "timm/inception_v4", "timm/rdnet_base",
    "timm/selecsls42", "timm/vgg11", "timm/vovnet39a",
    "torchvision/alexnet", "torchvision/densenet121", "torchvision/googlenet",
    "torchvision/inception_v3", "torchvision/s3d", "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_0", "torchvision/ssd300_vgg16", "torchvision/vgg11",
    "torchvision/quantized_googlenet", "torchvision/quantized_inception_v3",
    "torchvision/quantized_shufflenet_v2_x0_5",
}  # fmt: skip
# Their adds are those of torch's FloatFunctional, which observes the sum before it returns it.
REFUSED = {
    "torchvision/quantized_mobilenet_v2", "torchvision/quantized_mobilenet_v3_large",
    "torchvision/quantized_resnet18",
}  # fmt: skip
QUICK = {
    "transformers/BertForSequenceClassification", "transformers/CLIPForImageClassification",
    "transformers/GPT2Model", "transformers/Wav2Vec2ForSequenceClassification",
}  # fmt: skip
MODELS = [name for source in ("torchvision", "transformers") for name in zoo(source, False)]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_residual_adds(name: str) -> None:
    row = coverage_of(name, "residual", checks=True)
    expected = "none" if name in WITHOUT_ADDS else "refused" if name in REFUSED else "planned"
    assert row.outcome == expected, row
    if expected == "planned":
        assert row.check[0].isdigit(), row


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo("timm", False))
def test_residual_adds_of_timm_are_planned(name: str) -> None:
    """That they are exact is tested model by model in test_timm.py."""
    row = coverage_of(name, "residual")
    assert row.outcome == ("none" if name in WITHOUT_ADDS else "planned"), row


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor | None]:
    model.train().zero_grad()
    torch.manual_seed(0)
    outputs = [leaf for _, leaf in rules.leaves(model(**inputs)) if leaf.is_floating_point()]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def in_timm(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=5, img_size=64)


def in_transformers(family: str, attention: str, **sizes: object) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, **sizes
    )
    config._attn_implementation = attention
    return getattr(transformers, f"{family}Model")(config)


IMAGES = {"x": (3, 3, 64, 64)}
PIXELS = {"pixel_values": (3, 3, 32, 32)}
CHECKPOINTED = {
    "timm ViT": (lambda: in_timm("vit_tiny_patch16_224"), IMAGES),
    "timm Swin": (lambda: in_timm("swin_tiny_patch4_window7_224"), IMAGES),
    "timm ResNet": (lambda: timm.create_model("resnet18", num_classes=5), IMAGES),
    "ViT, eager": (lambda: in_transformers("ViT", "eager", image_size=32), PIXELS),
    "ViT, sdpa": (lambda: in_transformers("ViT", "sdpa", image_size=32), PIXELS),
    "BERT, eager": (lambda: in_transformers("Bert", "eager", vocab_size=64), {"input_ids": (3, 8)}),
    "BERT, sdpa": (lambda: in_transformers("Bert", "sdpa", vocab_size=64), {"input_ids": (3, 8)}),
    "GPT-2": (
        lambda: transformers.GPT2Model(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64)
        ),
        {"input_ids": (3, 8)},
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_with_gradient_checkpointing(name: str) -> None:
    """Without checkpoints the gradient is exact (above); with them it is the same."""
    build, shapes = CHECKPOINTED[name]
    torch.manual_seed(0)
    model = build().double()
    inputs = {
        key: torch.arange(24).view(shape) if key == "input_ids" else torch.randn(shape).double()
        for key, shape in shapes.items()
    }
    plain = gradients(model, inputs)
    planned = vcreg_fx.plan(model, "residual", example_inputs=(), example_kwargs=inputs)
    planned.apply(alpha=2.0, beta=1.0)
    expected = [None if grad is None else grad.clone() for grad in gradients(model, inputs)]
    assert relative_error(plain, expected) > 1e-3
    if isinstance(model, transformers.PreTrainedModel):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.set_grad_checkpointing()
    calls = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: calls.append(id(module)))
    assert relative_error(gradients(model, inputs), expected) <= 1e-10
    assert len(calls) > len(set(calls))  # forward ran again in the backward pass
