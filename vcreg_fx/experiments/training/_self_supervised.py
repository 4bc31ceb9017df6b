"""Self-supervised training: two branches, what is predicted of what, and whether it collapses.

Heads, contrastive losses and the momentum are lightly's, VICReg's terms `vcreg_fx.functional`'s.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ...evaluation import squared_correlation
from ...evaluation._gradient_probe import leave_out_penalties
from ...functional import covariance_loss, invariance_loss, variance_loss

Distance = Literal["mean square", "normalized square", "cosine"]
BARLOW_SLOPE = 5e-3  # λ of Barlow Twins' paper


@dataclass(frozen=True)
class Method:
    """A way to learn from two views.

    **Arguments:**

    - `loss`: ``"simclr"``, ``"barlow"``, or the distance D of VICReg's Eq. 8 between an embedding
      and the prediction of the other view: ``"mean square"`` (over features, VICReg), ``"normalized
      square"`` (of vectors of length 1, summed; BYOL) or ``"cosine"`` (negative; SimSiam).
    - `invariance`, `variance`, `covariance`: λ, µ and ν of VICReg's Eq. 6, on the embeddings. As in
      its published code, the variance term is averaged over the two views, where Eq. 6 sums. Where
      D compares directions alone, as BYOL's and SimSiam's, it asks for a standard deviation of 1/√d
      of embeddings of length 1: a larger mean would hide that of longer ones.
    - `expander`, `predictor`: the widths of their layers; a predictor without layers is none.
    - `norm`: batch norm after the ``"inner"`` layers of both, after ``"all"`` of the expander, or
      ``"none"``.
    - `stop_gradient`: whether the target of a prediction gets no gradient.
    - `momentum`: where targets are a moving average's of encoder and expander, the weight of the
      old average at the beginning, which rises to 1 by a cosine; 0 for none.
    - `embedding`: ``"none"``, ``"std"`` (standardized over the batch) or ``"l2"`` (of length 1;
      γ is 1/√d then), see VICReg's table 8.
    - `branches`: ``"shared"`` weights, or ``"own"`` ones for each view.
    - `temperature`: of SimCLR.
    """

    loss: Distance | Literal["simclr", "barlow"] = "mean square"
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    expander: Sequence[int] = (8192, 8192, 8192)
    predictor: Sequence[int] = ()
    norm: Literal["inner", "all", "none"] = "inner"
    stop_gradient: bool = False
    momentum: float = 0.0
    embedding: Literal["none", "std", "l2"] = "none"
    branches: Literal["shared", "own"] = "shared"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if (self.predictor or self.momentum) and self.branches == "own":
            raise ValueError("A predictor or a momentum encoder takes branches that are shared.")
        if self.loss in {"simclr", "barlow"} and (self.predictor or self.momentum):
            raise ValueError(
                f"loss={self.loss!r} takes neither a predictor nor a momentum encoder."
            )

    def changed_by(self, params: Mapping[str, Any]) -> Method:
        """Return the method with those of its fields that are among a trial's parameters."""
        names = {item.name for item in fields(self)}
        return replace(self, **{name: v for name, v in params.items() if name in names})


class Embedded(NamedTuple):
    """What two views became; each a pair of tensors, shapes (n, width) and (n, d).

    **Attributes:**

    - `representations`: of the encoder.
    - `embeddings`: of the expander.
    - `predictions`: of the predictor; without one, the embeddings.
    - `targets`: what is predicted of the other view; with momentum, its own embeddings.
    """

    representations: tuple[Tensor, Tensor]
    embeddings: tuple[Tensor, Tensor]
    predictions: tuple[Tensor, Tensor]
    targets: tuple[Tensor, Tensor]


def make_head(width: int, widths: Sequence[int], norm: str) -> nn.Module:
    """Return linear layers with ReLU between them, and batch norms.

    **Arguments:**

    - `width`: of the input.
    - `widths`: of the layers.
    - `norm`: ``"inner"``, ``"all"`` or ``"none"``: after which layers.

    **Raises:** `ModuleNotFoundError` without lightly.
    """
    from lightly.models.modules.heads import ProjectionHead

    blocks = []
    for i, (before, after) in enumerate(itertools.pairwise((width, *widths)), start=1):
        last = i == len(widths)
        normed = norm == "all" or (norm == "inner" and not last)
        blocks.append((before, after, nn.BatchNorm1d(after) if normed else None,
                       None if last else nn.ReLU()))  # fmt: skip
    head: nn.Module = ProjectionHead(blocks)
    return head


class Siamese(nn.Module):
    """Encoder and expander for two views, with the predictor and the momentum encoder of a method.

    **Arguments:**

    - `encoder`: images to representations; it is trained in place.
    - `width`: of a representation.
    - `method`: what is built.
    - `second`: for ``branches="own"``, the encoder of the second view and its width.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        method: Method,
        second: tuple[nn.Module, int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.expander = make_head(width, method.expander, method.norm)
        self.predictor: nn.Module | None = None
        self.second: nn.ModuleList | None = None
        self.teacher: nn.ModuleList | None = None
        if method.predictor:
            inner = "none" if method.norm == "none" else "inner"
            self.predictor = make_head(method.expander[-1], method.predictor, inner)
        if method.branches == "own":
            if second is None:
                raise ValueError('branches="own" takes a second encoder.')
            other = make_head(second[1], method.expander, method.norm)
            self.second = nn.ModuleList([second[0], other])
        if method.momentum:
            parts = nn.ModuleList([self.encoder, self.expander])
            self.teacher = copy.deepcopy(parts).requires_grad_(False)
            leave_out_penalties(self.teacher)
        self._stop, self._momentum = method.stop_gradient, method.momentum

    def forward(self, views: Tensor) -> Embedded:
        """Return what two views become.

        **Arguments:**

        - `views`: shape (n, 2, channels, height, width).
        """
        first, other = views.unbind(1)
        encoder, expander = self.second or (self.encoder, self.expander)
        y = self.encoder(first), encoder(other)
        z = self.expander(y[0]), expander(y[1])
        p = z if self.predictor is None else (self.predictor(z[0]), self.predictor(z[1]))
        targets = z
        if self.teacher is not None:
            with torch.no_grad():
                taught = [self.teacher[1](self.teacher[0](view)) for view in (first, other)]
            targets = taught[0], taught[1]
        elif self._stop:
            targets = z[0].detach(), z[1].detach()
        return Embedded(y, z, p, targets)

    def follow(self, step: int, steps: int) -> None:
        """Move the momentum encoder, if there is one, after so many of all steps."""
        if self.teacher is None:
            return
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        weight = cosine_schedule(step - 1, steps, self._momentum, 1.0)
        for live, taught in zip((self.encoder, self.expander), self.teacher, strict=True):
            update_momentum(live, taught, weight)


class Objective:
    """The loss of a method, with what of the last step tells whether it collapses.

    **Arguments:**

    - `method`: whose loss it is.
    - `together`: gather the embeddings of all processes where a loss compares samples or takes
      their moments, so that DDP's mean of the gradients is the gradient for all of them; by default
      where there are several.

    **Raises:** `ModuleNotFoundError` without lightly.
    """

    def __init__(self, method: Method, together: bool | None = None) -> None:
        self.method = method
        if together is None:
            together = distributed.is_available() and distributed.is_initialized()
        self._together = together
        self._contrast: nn.Module | None = None
        if method.loss == "simclr":
            from lightly.loss import NTXentLoss

            self._contrast = NTXentLoss(method.temperature, gather_distributed=self._together)
        elif method.loss == "barlow":
            from lightly.loss import BarlowTwinsLoss

            self._contrast = BarlowTwinsLoss(BARLOW_SLOPE)
        self._last: Embedded | None = None

    def __call__(self, found: Embedded, labels: Tensor | None = None) -> Tensor:
        """Return the loss, in float32 also under autocast; labels are not looked at."""
        with torch.autocast(found.embeddings[0].device.type, enabled=False):
            return self._of(Embedded(*((_full(a), _full(b)) for a, b in found)))

    def _of(self, found: Embedded) -> Tensor:
        self._last = found
        method = self.method
        if self._contrast is not None:
            pair: Sequence[Tensor] = found.embeddings
            if method.loss == "barlow":  # which lightly would standardize in each process
                pair = [self._gathered(part) for part in pair]
            loss: Tensor = self._contrast(*pair)
            return loss
        z = self._normalized(found.embeddings)
        terms = []
        if method.invariance:
            terms.append(method.invariance * self._invariance(found))
        if method.variance or method.covariance:
            z = [self._gathered(part) for part in z]
        if method.variance:
            unit = method.embedding == "l2" or method.loss != "mean square"
            gamma = 1 / math.sqrt(z[0].shape[1]) if unit else 1.0
            spread = [_normalized(part, "l2") if unit else part for part in z]
            parts = [variance_loss(part, gamma) for part in spread]
            terms.append(method.variance * (parts[0] + parts[1]) / 2)
        if method.covariance:
            parts = [covariance_loss(part, normalization="vicreg") for part in z]
            terms.append(method.covariance * (parts[0] + parts[1]))
        return torch.stack(terms).sum()

    def _invariance(self, found: Embedded) -> Tensor:
        """Return VICReg's Eq. 8; without a predictor and stops it is D of the two embeddings."""
        p, targets = self._normalized(found.predictions), self._normalized(found.targets)
        distance = _DISTANCES[self.method.loss]
        return (distance(targets[0], p[1]) + distance(targets[1], p[0])) / 2

    def _normalized(self, pair: Sequence[Tensor]) -> list[Tensor]:
        """Return a pair with the method's normalization, over the batches of all processes."""
        kind = self.method.embedding
        if kind != "std" or not self._together:
            return [_normalized(part, kind) for part in pair]
        rank = distributed.get_rank()
        return [
            _normalized(self._gathered(part), kind)[rank * len(part) :][: len(part)]
            for part in pair
        ]  # fmt: skip

    def _gathered(self, z: Tensor) -> Tensor:
        if not self._together:
            return z
        from lightly.utils.dist import gather

        return torch.cat(gather(z))

    def measures(self) -> dict[str, float]:
        """Return what the last step of this process tells of collapse, averaged over its two views.

        ``std_z`` and ``std_y`` are the standard deviation of l2-normalized embeddings and
        representations, as a share of 1/√d: 1 where they are spread evenly, 0 where they are one
        vector. ``corr_z`` and ``corr_y`` are VICReg's Eq. 9; left out where nothing varies.
        """
        from lightly.utils.debug import std_of_l2_normalized

        if self._last is None:
            return {}
        found = {}
        z = [_normalized(part, self.method.embedding) for part in self._last.embeddings]
        for name, pair in (("z", z), ("y", self._last.representations)):
            views = [part.detach().float() for part in pair]
            spread = [float(std_of_l2_normalized(v)) * math.sqrt(v.shape[1]) for v in views]
            found[f"std_{name}"] = sum(spread) / 2
            same = views[0].shape == views[1].shape
            found[f"corr_{name}"] = squared_correlation(views[0], views[1] if same else None)
        return {name: value for name, value in found.items() if math.isfinite(value)}


def _full(z: Tensor) -> Tensor:
    return z.float() if z.dtype in {torch.float16, torch.bfloat16} else z


def _normalized(z: Tensor, kind: str) -> Tensor:
    if kind == "std":
        return F.batch_norm(z, None, None, training=True)
    return F.normalize(z, dim=1) if kind == "l2" else z


def _mean_square(z: Tensor, other: Tensor) -> Tensor:
    return invariance_loss(z, other) / z.shape[1]


def _normalized_square(z: Tensor, other: Tensor) -> Tensor:
    return invariance_loss(F.normalize(z, dim=1), F.normalize(other, dim=1))


def _negative_cosine(z: Tensor, other: Tensor) -> Tensor:
    return -F.cosine_similarity(z, other, dim=1).mean()


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean square": _mean_square,
    "normalized square": _normalized_square,
    "cosine": _negative_cosine,
}
