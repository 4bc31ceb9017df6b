"""The networks of the experiments."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..training._batches import digest_of_made
from ..video import VIDEO_NETWORKS, build_video_network
from ._experiment import ReproductionError

Factory = Callable[[tuple[int, ...], int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut has no parameters (He et al. 2016, option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self._stride, self._new = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(f(x) + shortcut(x))."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self._stride > 1 or self._new:
            x = nn.functional.pad(
                x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, 0, self._new)
            )
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """The ResNets of He et al. 2016, section 4.2: 6n + 2 layers, 16, 32 and 64 channels.

    **Arguments:**

    - `depth`: 6n + 2; 32 is that of VCReg's table 3.
    - `channels`: of the images.
    - `classes`: of the head.
    - `stem_stride`: 1 as published; 2 halves the resolution at once, for experiments on a CPU.
    """

    def __init__(self, depth: int, channels: int, classes: int, stem_stride: int = 1) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ReproductionError(f"depth={depth} must be 6n + 2: 8, 14, 20, 26, 32, …")
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        stages, before = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            blocks = [BasicBlock(before, width, stride)]
            blocks += [BasicBlock(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
            before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))
        return logits


class PlainBlock(nn.Module):
    """ResNet-18's block, in one dimension or two: its shortcut is a convolution where it must."""

    def __init__(self, before: int, width: int, stride: int, dimensions: int) -> None:
        super().__init__()
        conv, norm = _LAYERS[dimensions][:2]
        self.body = nn.Sequential(
            conv(before, width, 3, stride, 1, bias=False), norm(width), nn.ReLU(),
            conv(width, width, 3, 1, 1, bias=False), norm(width),
        )  # fmt: skip
        self.skip = nn.Sequential()
        if stride > 1 or before != width:
            self.skip = nn.Sequential(conv(before, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(f(x) + shortcut(x))."""
        return torch.relu(self.body(x) + self.skip(x))


_LAYERS: dict[int, tuple[Any, ...]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
}


def plain_resnet18(dimensions: int, width: int) -> nn.Module:
    """Return a ResNet-18 for one channel, without a classifier: 8 × `width` features.

    **Arguments:**

    - `dimensions`: 1 for waveforms, 2 for images.
    - `width`: of the first stage; 64 as published, and 48 for the 384 features of VICReg's D.2.
    """
    conv, norm, pool, mean = _LAYERS[dimensions]
    layers = [conv(1, width, 7, 2, 3, bias=False), norm(width), nn.ReLU(), pool(3, 2, 1)]
    before = width
    for stage in range(4):
        for stride in (min(stage + 1, 2), 1):
            layers.append(PlainBlock(before, width << stage, stride, dimensions))
            before = width << stage
    return nn.Sequential(*layers, mean(1), nn.Flatten())


def _resnet(depth: int, stem_stride: int) -> Factory:
    return lambda shape, classes: CifarResNet(depth, shape[0], classes, stem_stride)


def _convnext_mini(shape: tuple[int, ...], classes: int) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    model: nn.Module = ConvNeXt(
        in_chans=shape[0], num_classes=classes, depths=(1, 1, 2, 1), dims=(16, 32, 64, 128)
    )
    return model


def _cifar_resnet18(shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-18 for small images: a first convolution of 3×3 without stride, and no pooling."""
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


NETWORKS: dict[str, Factory] = {
    "resnet8-half": _resnet(8, 2),
    "resnet14-half": _resnet(14, 2),
    "resnet32": _resnet(32, 1),
    "resnet18-cifar": _cifar_resnet18,
    "convnext-atto": lambda shape, classes: _from_timm("convnext_atto", shape, classes),
    "convnext-mini": _convnext_mini,
}
"""Name → function of (shape of an image, number of classes).

``-half`` halves the resolution in the stem; ``convnext-mini`` is a ConvNeXt of depths 1, 1, 2, 1
and 16 to 128 channels.
"""


def find_network(name: str) -> Factory:
    """Return the function that builds a network.

    **Arguments:**

    - `name`: one of `NETWORKS`, or ``timm/NAME`` or ``torchvision/NAME``, built without weights; of
      clips, one of `VIDEO_NETWORKS`.

    **Raises:** `ReproductionError` for an unknown name.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name in VIDEO_NETWORKS:
        import_module("transformers")  # missing, it is said before anything is trained
        return partial(build_video_network, name)
    import timm
    from torchvision import models

    library, _, kind = name.partition("/")
    if library == "timm" and timm.is_model(kind):
        return partial(_from_timm, kind)
    if library == "torchvision" and kind in models.list_models(module=models):
        return partial(_from_torchvision, kind)
    raise ReproductionError(
        f"There is no network {name!r}; there are {', '.join(NETWORKS)}, the classifiers of timm "
        f"and torchvision: timm/NAME, torchvision/NAME, and for videos {', '.join(VIDEO_NETWORKS)}."
    )


def identity_of(build: Callable[[], nn.Module]) -> str:
    """Return what tells networks of one name apart: their modules, and their first weights.

    Where the same seed makes different ones, nothing can be told: ``"random"``.
    """

    def made() -> Any:
        model = build()
        return re.sub("0x[0-9a-f]+", "", repr(model)), model.state_dict()  # without addresses

    return digest_of_made(made)


def _from_timm(kind: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    import timm

    options = {"in_chans": shape[0], "num_classes": classes}
    try:
        model: nn.Module = timm.create_model(kind, img_size=shape[-1], **options)
    except TypeError:  # it takes images of any size
        model = timm.create_model(kind, **options)
    return model


def _from_torchvision(kind: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision import models

    if shape[0] != 3:
        raise ReproductionError(
            f"torchvision/{kind} takes colored images, and these have {shape[0]} channel"
            f"{'s' * (shape[0] != 1)}; take a network of timm."
        )
    size = {"image_size": shape[-1]} if kind.startswith("vit_") else {}
    model: nn.Module = models.get_model(kind, weights=None, num_classes=classes, **size)
    return model
