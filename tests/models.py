"""Models for the tests, small, without pretrained weights; and runs that compare them."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import vcreg_fx
from vcreg_fx import rules


def resnet18() -> nn.Module:
    """ResNet-18's blocks and stages, of few channels."""
    resnet, channels = timm.models.resnet, (16, 24, 32, 48)
    return resnet.ResNet(
        resnet.BasicBlock, (2, 2, 2, 2), channels=channels, num_classes=5, zero_init_last=False
    )


def resnet10() -> nn.Module:
    """Half of a ResNet-18's blocks, for what is compiled."""
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5)


def convnext() -> nn.Module:
    """ConvNeXt's blocks and downsampling layers, few and narrow."""
    return timm.models.ConvNeXt(
        num_classes=5, depths=(1, 2, 2, 1), dims=(16, 24, 32, 40), drop_path_rate=0.1
    )


def vit_tiny() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=3)


def swin() -> nn.Module:
    """Swin-T's blocks, two narrow stages of them."""
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[7, 7],
        stochastic_depth_prob=0.2, num_classes=5,
    )  # fmt: skip


def r3d_18() -> nn.Module:
    """R3D-18's blocks, one a stage."""
    video = torchvision.models.video.resnet
    return video.VideoResNet(
        video.BasicBlock, [video.Conv3DSimple] * 4, [1, 1, 1, 1], video.BasicStem, num_classes=5
    )


Build = Callable[[], nn.Module]
SMALL: dict[str, tuple[Build, tuple[int, ...]]] = {
    "resnet18": (resnet18, (4, 3, 32, 32)),
    "convnext": (convnext, (4, 3, 32, 32)),
    "vit_tiny": (vit_tiny, (4, 3, 32, 32)),
    "swin": (swin, (3, 3, 32, 32)),
    "r3d_18": (r3d_18, (3, 3, 4, 16, 16)),
}


def task_loss(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return (output * weights.view_as(output)).sum()


def step(model: nn.Module, x: Tensor, *, seed: int = 1) -> tuple[Tensor, list[Tensor | None]]:
    """Run forward and backward once; return the output and the parameters' gradients."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(x)
    loss = task_loss(output)
    if any(site.config.mode == "loss" for site in vcreg_fx.sites(model)):
        loss = loss + vcreg_fx.penalty(model)
    loss.backward()
    return output.detach(), [p.grad for p in model.parameters()]


def naive_step(
    model: nn.Module,
    x: Tensor,
    places: list[tuple[str, str, str]],
    *,
    seed: int = 1,
    **config: float,
) -> list[Tensor | None]:
    """Gradients of ``loss + Σ penalties``, penalties by autograd on what hooks saw.

    `places` are (module path, "output" or "input", layout). Nothing of the library but the
    reference loss takes part.
    """
    seen: list[tuple[Tensor, str]] = []
    handles = []
    for path, position, layout in places:

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, p=position, ly=layout):
            seen.append((output if p == "output" else args[0], ly))

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    model.zero_grad()
    torch.manual_seed(seed)
    loss = task_loss(model(x))
    for h, layout in seen:
        loss = loss + vcreg_fx.vcreg_loss(h, layout=layout, **config)
    loss.backward()
    for handle in handles:
        handle.remove()
    return [p.grad for p in model.parameters()]


def relative_error(found: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """‖found − expected‖ / ‖expected‖ over all parameters."""
    pairs = [
        (f, e) for f, e in zip(found, expected, strict=True) if f is not None and e is not None
    ]
    assert len(pairs) == sum(e is not None for e in expected)
    difference = torch.stack([(f - e).double().pow(2).sum() for f, e in pairs]).sum()
    size = torch.stack([e.double().pow(2).sum() for _, e in pairs]).sum()
    return float((difference / size).sqrt())


class Adds(TorchFunctionMode):
    """Takes the naive penalties of the sums, of all that a forward pass computes, that are planned.

    It looks at nothing but torch's calls, whose adds it counts, so that it tells whether a site in
    the middle of a forward is where the plan says.
    """

    def __init__(self, planned: vcreg_fx.Plan, **config: float) -> None:
        super().__init__()
        nodes = planned.recording.flat.nodes
        adds = [node for node in nodes if node.op == "call_function" and self._is_add(node)]
        layouts = {site.name: str(site.layout) for site in planned.sites}
        spots = planned.rule.select(planned.recording)
        alive = {
            site.name for site in planned.sites if site.leads_on
        }  # else no gradient comes back
        self.layouts = {
            adds.index(spot.flat): layouts[spot.name] for spot in spots if spot.name in alive
        }
        self.penalties: list[Tensor] = []
        self._config, self._seen = config, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if rules.operation(func) == "add" and self._is_float(output):
            if (layout := self.layouts.get(self._seen)) is not None:
                with torch.autocast("cpu", enabled=False):
                    penalty = vcreg_fx.vcreg_loss(output, layout=layout, **self._config)
                self.penalties.append(penalty)
            self._seen += 1
        return output

    def _is_add(self, node: torch.fx.Node) -> bool:
        return rules.operation(node.target) == "add" and self._is_float(node.meta["val"])

    @staticmethod
    def _is_float(value: object) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point()
