"""How a model is trained, in numbers; and the optimizer, schedule and average that they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel

from placement_rules._torch import BASE_OF_INSTANCE_NORMS, BASES_OF_BATCH_NORMS

_IMAGENET = 1_281_167  # images


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained. The names follow torchvision's training reference.

    **Arguments:**

    - `epochs`, `batch_size`: the batch is that of all processes together.
    - `steps`: of a short run: so many steps instead of epochs, at least 3, on torch's one-cycle
      schedule instead of warm-up and cosine, or on the constant one.
    - `optimizer`: ``"adamw"``, ``"adam"``, ``"sgd"`` or ``"lars"`` (lightly's). The last three add
      the weight decay to the gradient, as an L2 penalty does. LARS leaves biases and norm layers
      out of the decay and of its scaling, where `norm_weight_decay` is 0, as SimCLR and BYOL do.
    - `schedule`: ``"cosine"``, or ``"constant"`` for one rate, without a warm-up.
    - `learning_rate`: at the end of the warm-up; then it follows a cosine down to `final_rate`.
    - `layer_decay`: the learning rate of each block of a transformer is so many times that of the
      block after it, and that of what stands before all blocks once more (BEiT; Bao et al. 2022);
      also at the end of the cosine, as in VideoMAE's code.
    - `constant_rate`: what the names of parameters begin with that are trained with `learning_rate`
      throughout, such as SimSiam's ``"predictor."``.
    - `weight_decay`; `norm_weight_decay`, `bias_weight_decay`: that of norm layers, and of biases
      elsewhere, where it is not None.
    - `momentum`: of SGD and LARS.
    - `warmup_epochs`: the learning rate rises linearly from `warmup_start` of itself.
    - `label_smoothing`: of the cross-entropy.
    - `mixup`, `cutmix`: the α of each; 0 leaves it out. With both, each batch gets one of them.
    - `repeats`: how often an image occurs in an epoch (repeated augmentation); the epoch is as long
      as with 1.
    - `ema_decay`: of a moving average of the weights, which the model has at the end; 0 for none.
      As torchvision's ``--model-ema-decay``, 0.99998 there, it is adjusted to the length of
      training: see `averaging_weight`.
    - `ema_every`: steps between updates of that average.
    - `clip_norm`: the largest norm of the gradient.
    - `amp`: ``"none"``, ``"bfloat16"`` or ``"float16"`` (with a gradient scaler).
    - `workers`: processes of the data loader. Data that lies in memory needs none.
    - `device`: by default the GPU of this process, else the CPU.
    """

    epochs: int = 6
    batch_size: int = 128
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    learning_rate: float = 4e-3
    final_rate: float = 0.0
    constant_rate: str | None = None
    weight_decay: float = 0.05
    norm_weight_decay: float | None = 0.0
    bias_weight_decay: float | None = None
    layer_decay: float = 1.0
    momentum: float = 0.9
    warmup_epochs: float = 1.0
    warmup_start: float = 0.01
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    ema_decay: float = 0.0
    ema_every: int = 32
    clip_norm: float | None = None
    amp: Literal["none", "bfloat16", "float16"] = "none"
    workers: int = 0
    device: str | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check what would fail late."""
        hints = get_type_hints(type(self))
        for item in fields(self):
            choices = get_args(hints[item.name])
            if isinstance(item.default, str) and getattr(self, item.name) not in choices:
                raise ValueError(
                    f"{item.name}={getattr(self, item.name)!r} must be one of {choices}."
                )
        for name, least in {"epochs": 1, "batch_size": 2, "repeats": 1, "ema_every": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.steps is not None and self.steps < 3:
            raise ValueError(f"steps={self.steps} must be at least 3: up, at the top, down again.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0, and 1 at the most.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        if not 0 <= self.final_rate < self.learning_rate:
            raise ValueError(
                f"final_rate={self.final_rate} must be from 0 to below "
                f"learning_rate={self.learning_rate}."
            )
        for name in ("label_smoothing", "ema_decay", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to below 1.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer; norm layers and biases may have a weight decay of their own.

    The first group of parameters has the learning rate of the head.

    **Raises:** `ValueError` if `constant_rate` is of no parameter, or if `layer_decay` is asked for
    and the model has no blocks in one list; `ModuleNotFoundError` for LARS without lightly.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = _groups(model, settings)
    if settings.constant_rate is not None:
        groups = [part for group in groups for part in _by_rate(model, group, settings)]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "lars":
        from lightly.utils.lars import LARS

        optimizer = LARS(groups, rate, momentum=settings.momentum, weight_decay=decay)
    elif settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, rate, momentum=settings.momentum, weight_decay=decay)
    else:
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(groups, rate, weight_decay=decay)
    if settings.constant_rate is not None:
        optimizer.register_step_pre_hook(_keep_constant_rates)
    return optimizer


def _groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return the parameters by depth, and by their weight decay: others, norms, biases."""
    norms = {p for module in model.modules() if isinstance(module, _NORMS)
             for p in module.parameters(recurse=False)}  # fmt: skip
    if settings.optimizer == "lars":
        norms |= {p for p in model.parameters() if p.ndim < 2}
    below = _depths(model) if settings.layer_decay < 1 else {}
    decays = (settings.weight_decay, settings.norm_weight_decay, settings.bias_weight_decay)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = settings.bias_weight_decay is not None and name.endswith("bias")
            kind = 1 if parameter in norms else 2 if own else 0
            depth = below.get(parameter, 0)
            group = {"params": [], "lr": settings.learning_rate * settings.layer_decay**depth}
            if (decay := decays[kind]) is not None:
                group["weight_decay"] = decay
            found.setdefault((depth, kind), group)["params"].append(parameter)
    return [found[key] for key in sorted(found)]


def _by_rate(
    model: nn.Module, group: dict[str, Any], settings: TrainSettings
) -> list[dict[str, Any]]:
    """Return a group of parameters as two: those with the schedule, and those without."""
    prefix = str(settings.constant_rate)
    kept = {p for name, p in model.named_parameters() if name.startswith(prefix)}
    if not kept:
        raise ValueError(f"constant_rate={prefix!r}: no parameter's name begins so.")
    first, second = ([p for p in group["params"] if (p in kept) == is_kept]
                     for is_kept in (False, True))  # fmt: skip
    constant = settings.learning_rate
    return [{**group, "params": first}, {**group, "params": second, "constant": constant}]


def _keep_constant_rates(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Undo, before a step, what the schedule did to the groups that have none."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("constant", group["lr"])


_NORMS = (
    *BASES_OF_BATCH_NORMS,
    BASE_OF_INSTANCE_NORMS,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def _depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how far each parameter lies below the head: 0, 1 in the last block, and so on.

    The blocks are the model's only list of modules of one class that have modules in them; what is
    registered before them lies below them, and what is registered after them belongs to the head.
    """
    lists = [
        module for module in model.modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1
        and any(module[0].children()) and len({type(item) for item in module}) == 1
    ]  # fmt: skip
    if len(lists) != 1:
        raise ValueError(
            f"layer_decay needs a model whose blocks stand in one list, as those of transformers; "
            f"those of {type(model).__name__} do not. Leave it at 1."
        )
    (blocks,) = lists
    top = len(blocks)
    found = {p: top - i for i, block in enumerate(blocks) for p in block.parameters()}
    before = top + 1
    for parameter in model.parameters():
        if parameter in found:
            before = 0
        else:
            found[parameter] = before
    return found


def warmup_steps(settings: TrainSettings, steps: int) -> int:
    """Return how many of all steps belong to the warm-up."""
    if settings.schedule == "constant":
        return 0
    if settings.steps is not None:
        return max(round(0.2 * steps), 2)
    return round(min(settings.warmup_epochs / settings.epochs, 1.0) * steps)


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int, settings: TrainSettings
) -> LRScheduler:
    """Return the schedule of the learning rate over all steps.

    Linear from `warmup_start` over the warm-up, then a cosine down to `final_rate` (Appendix A has
    0), or where a group has a share of the learning rate, to that share of it; step by step, where
    torchvision's reference changes the rate once an epoch.
    """
    if settings.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    if settings.steps is not None:
        share = max(0.2, 2 / steps)
        tops = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, tops, total_steps=steps, pct_start=share)
    rise = warmup_steps(settings, steps)
    length, end = max(steps - rise, 1), settings.final_rate / settings.learning_rate
    fall: LRScheduler = CosineAnnealingLR(optimizer, length)
    if end:  # in each group, of its own rate
        fall = LambdaLR(
            optimizer,
            lambda step: end + (1 - end) * (1 + math.cos(math.pi * min(step / length, 1))) / 2,
        )
    if not rise:
        return fall
    return SequentialLR(
        optimizer, [LinearLR(optimizer, settings.warmup_start, total_iters=rise), fall], [rise]
    )


def make_mixing(
    settings: TrainSettings, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return mixup, cutmix, or a random choice of both; None where neither is asked for."""
    if not settings.mixup and not settings.cutmix:
        return None
    from torchvision.transforms import v2
    from torchvision.tv_tensors import Video

    found = []
    if settings.mixup:
        found.append(v2.MixUp(alpha=settings.mixup, num_classes=classes))
    if settings.cutmix:
        found.append(v2.CutMix(alpha=settings.cutmix, num_classes=classes))
    choice = v2.RandomChoice(found)

    def mixing(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed, weights = choice(Video(images) if images.ndim == 5 else images, labels)
        return mixed.as_subclass(Tensor), weights

    return mixing


def averaging_weight(settings: TrainSettings, steps: int) -> float:
    """Return the weight that the averaged weights give to the trained ones at an update.

    That of torchvision's reference, ``min(1, (1 − ema_decay) · batch · ema_every / epochs)``, for
    any number of images: there it is left out, because the images are ImageNet's. So the average
    reaches back over the same share of training, however many steps it has.
    """
    return min(1.0, (1 - settings.ema_decay) * _IMAGENET * settings.ema_every / steps)


class Average:
    """The moving average of weights and buffers; with ``ema_decay=0``, the model itself.

    As in torchvision's reference, it is a copy of the weights until the warm-up is over. The counts
    of batch norms are copied, not averaged.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, steps: int) -> None:
        self._live, self._every = model, settings.ema_every
        self._warmup = warmup_steps(settings, steps)
        weight = averaging_weight(settings, steps)
        self._average = None
        if settings.ema_decay:
            self._average = AveragedModel(
                model,
                avg_fn=lambda mean, new, _: (
                    mean.lerp(new, weight) if mean.is_floating_point() else new
                ),
                use_buffers=True,
            )

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, which is what training leads to."""
        if self._average is None:
            return self._live
        found: nn.Module = self._average.module
        return found

    def update(self, step: int) -> None:
        """Move the average towards the weights after a step, counted from 0, every few steps."""
        if self._average is not None and step % self._every == 0:
            self._average.update_parameters(self._live)
            if step < self._warmup:
                self._average.n_averaged.zero_()  # so that the next update copies the weights

    def apply(self) -> None:
        """Give the trained model the averaged weights."""
        if self._average is not None:
            self._live.load_state_dict(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the average, for a checkpoint."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the average of a checkpoint."""
        if self._average is not None:
            self._average.load_state_dict(state)
