"""Whole networks, drawn by Hypothesis, that tell the truth about themselves.

A network is a stem, stages of blocks, and a head. Every forward **notes** its tensors as it makes
them: which rules mean this tensor, and which of its axes holds channels. Listening to these notes
(`Listener`) gives the sites that a plan has to find and, with the loss as the paper writes it, the
gradient that training has to leave behind. Nothing of the library but that loss takes part.

The vocabulary, each word drawn apart from the others:

- `Form`: how a stage holds activations: 3 to 5 axes, channels first or last, sizes alike or not;
- `BRANCHES`: what a block computes: convolutions, attention, windows, experts, Fourier, …;
- `BLOCKS`: how a block adds or concatenates it, and how its forward is written;
- `HABITS`: what the forward does besides: attributes, random numbers, contexts, questions;
- `TRANSITIONS`: what stands between stages; `HEADS`; `OUTPUTS`: in what a model returns its logits.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vcreg_fx

# The truth ------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """A site that has to be found: where, which axis holds channels, calls per forward pass."""

    path: str
    position: str  # "output", "input", or "inside"
    axis: int
    calls: int


@dataclass
class _Note:
    tensor: Tensor
    version: int
    axis: int
    position: str | None


class Listener:
    """Collects the notes of a network's forward pass that any of the given rules means.

    The n-th note of a module's call tells of one site, at every call. `penalties` are the naive
    penalties of the noted tensors, taken at once, before anything is written into them, each site's
    with coefficients of its own (`coefficients`).
    """

    active: ClassVar[Listener | None] = None

    def __init__(self, network: nn.Module, rules: set[str], **config: Any) -> None:
        self.rules, self.config = rules, config
        self.penalties: list[Tensor] = []
        self._paths = {module: path for path, module in network.named_modules()}
        self._notes: dict[tuple[str, int], _Note] = {}  # in the order of computation
        self._calls: Counter[str] = Counter()
        self._heard: defaultdict[str, list[tuple[Tensor, int]]] = defaultdict(list)  # in this call
        self._handles: list[Any] = []

    def __enter__(self) -> Listener:
        Listener.active = self
        for module in self._paths:
            self._handles.append(module.register_forward_hook(self._end))
        return self

    def __exit__(self, *_: object) -> None:
        Listener.active = None
        for handle in self._handles:
            handle.remove()

    def hear(
        self, module: nn.Module, tensor: Tensor, rules: set[str], axis: int, position: str | None
    ) -> None:
        if not rules & self.rules:
            return
        path = self._paths[module]
        heard, version = self._heard[path], tensor._version
        if any(tensor is other and version == then for other, then in heard):
            return  # told before, for another rule
        key = path, len(heard)
        heard.append((tensor, version))
        self._notes.setdefault(key, _Note(tensor, version, axis, position))
        if self.config:
            rows = tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])
            how = {**self.config, **coefficients(list(self._notes).index(key))}
            self.penalties.append(vcreg_fx.vcreg_loss(rows, layout="NC", **how))

    def _end(self, module: nn.Module, _: Any, output: Any) -> None:
        """A noted tensor is at the border of its module where the module returns it as it was."""
        path = self._paths[module]
        self._calls[path] += 1
        self._heard.pop(path, None)
        returned = [(tensor, tensor._version) for tensor in tensors(output)]
        for (where, _), note in self._notes.items():
            if where == path and note.position is None:
                kept = any(note.tensor is t and note.version == v for t, v in returned)
                note.position = "output" if kept else "inside"

    @property
    def truth(self) -> list[Truth]:
        """The sites, in the order in which they are computed."""
        return [
            Truth(path, note.position or "", note.axis, self._calls[path])
            for (path, _), note in self._notes.items()
        ]


def coefficients(index: int) -> dict[str, float]:
    """Return the coefficients of a network's n-th site."""
    return {"alpha": 2.0 + index % 3, "beta": 1.0 + index % 2}


def note(
    module: nn.Module,
    tensor: Tensor,
    *rules: str,
    axis: int | None = None,
    position: str | None = None,
) -> None:
    """Say that these rules mean this tensor of this module, whose channels lie along `axis`."""
    if Listener.active is not None:
        axis = module.form.axis if axis is None else axis
        Listener.active.hear(module, tensor, set(rules), axis % tensor.ndim, position)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a structured output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for item in output.values():
            yield from tensors(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from tensors(item)
    elif isinstance(output, Result):
        yield from tensors(vars(output))


# One step -------------------------------------------------------------------------------------

Grads = list[Tensor | None]


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def gradients(network: nn.Module, x: Tensor, listener: Listener | None = None) -> Grads:
    """One step; where a listener is given, with the naive penalties of what it hears."""
    network.train().zero_grad()
    for module in network.modules():
        if hasattr(module, "runs"):
            module.runs = 0
    seed(1)
    if listener is None:
        output = network(x.clone())
    else:
        with listener:
            output = network(x.clone())
    (logits,) = tensors(output)
    loss = (logits * torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).view_as(logits)).sum()
    (loss if listener is None else loss + sum(listener.penalties)).backward()
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


# How activations are held ---------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """The shape of a stage's activations: (batch, width, place, …) or (batch, place, …, width)."""

    ndim: int
    last: bool
    width: int
    place: int
    batch: int

    @property
    def axis(self) -> int:
        """The axis that holds channels."""
        return self.ndim - 1 if self.last else 1

    @property
    def places(self) -> range:
        """The axes that hold places."""
        return range(1, self.ndim - 1) if self.last else range(2, self.ndim)

    @property
    def shape(self) -> tuple[int, ...]:
        places = (self.place,) * (self.ndim - 2)
        return (self.batch, *places, self.width) if self.last else (self.batch, self.width, *places)

    def per_channel(self, values: Tensor) -> Tensor:
        """View one number a channel so that it can be multiplied with an activation."""
        return values if self.last else values.view(-1, *[1] * (self.ndim - 2))


def dense(form: Form, into: int | None = None) -> nn.Module:
    """A layer that mixes channels at each place."""
    into = form.width if into is None else into
    if form.last:
        return nn.Linear(form.width, into)
    return _of_axes(form, "Conv")(form.width, into, 1)


def normalization(form: Form, kind: str = "") -> nn.Module:
    """A normalization as networks of this form have it."""
    if form.last:
        return nn.LayerNorm(form.width)
    if kind == "group":
        return nn.GroupNorm(2, form.width)
    return ChannelNorm(form) if kind == "channel" else _of_axes(form, "BatchNorm")(form.width)


def _of_axes(form: Form, name: str) -> type[nn.Module]:
    return getattr(nn, f"{name}{form.ndim - 2}d")


class ChannelNorm(nn.Module):
    """A layer norm over channels that come first (ConvNeXt's LayerNorm2d)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(form.width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return F.layer_norm(x, self.weight.shape, self.weight).movedim(-1, 1)


# What a block computes ------------------------------------------------------------------------


class Branch(nn.Module):
    """A function of an activation that returns one of the same form."""

    def __init__(self, form: Form, inplace: bool) -> None:
        super().__init__()
        self.form = form
        self.first, self.second = dense(form), dense(form)
        self.act = nn.ReLU(inplace=inplace)


class Mlp(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


class Convolutions(Branch):
    """A depthwise convolution, moved to channels first and back where they are last."""

    def __init__(self, form: Form, inplace: bool) -> None:
        super().__init__(form, inplace)
        width = form.width
        self.conv = _of_axes(form, "Conv")(width, width, 3, padding=1, groups=width)
        self.norm = normalization(form)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.conv(x.movedim(-1, 1)).movedim(1, -1) if self.form.last else self.conv(x)
        return self.second(self.act(self.norm(x)))


class Attention(Branch):
    """Explicit attention of two heads over all places, with a bias computed from its input."""

    heads = 2

    def __init__(self, form: Form, inplace: bool) -> None:
        super().__init__(form, inplace)
        self.qkv, self.bias = nn.Linear(form.width, 3 * form.width), nn.Linear(form.width, 2)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        tokens = x.flatten(1, -2) if self.form.last else x.flatten(2).transpose(1, 2)
        n, length, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) + self.bias(tokens).transpose(1, 2)[:, :, None]
        mixed = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, width)
        if not self.form.last:
            mixed = mixed.transpose(1, 2)
        return self.second(mixed.reshape(shape))


class Windows(Branch):
    """Swin's: rolled, padded, and cut along the first axis of places into windows that attend."""

    size = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        y = torch.roll(x if self.form.last else x.movedim(1, -1), -1, dims=1)
        length = y.shape[1]
        y = F.pad(y, (0, 0) * (y.ndim - 2) + (0, -length % self.size))
        windows = y.unflatten(1, (-1, self.size)).movedim(2, -2)
        windows = F.scaled_dot_product_attention(windows, windows, windows)
        y = windows.movedim(-2, 2).flatten(1, 2)[:, :length].roll(1, dims=1)
        return self.second(y if self.form.last else y.movedim(-1, 1))


class TokenMixing(Branch):
    """MLP-Mixer's, of channels that come last: linear layers over places."""

    def __init__(self, form: Form, inplace: bool) -> None:
        super().__init__(form, inplace)
        self.norm = normalization(form)
        self.down, self.up = nn.Linear(form.place, 3), nn.Linear(3, form.place)

    def forward(self, x: Tensor) -> Tensor:
        places = self.norm(x).transpose(-2, -1)
        return self.up(self.act(self.down(places))).transpose(-2, -1)


class SqueezeExcite(Branch):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        pooled = x.mean(dim=tuple(self.form.places), keepdim=True)
        return x * self.second(pooled).sigmoid()


class Experts(Branch):
    """A mixture of experts; the auxiliary loss is kept in an attribute."""

    def __init__(self, form: Form, inplace: bool) -> None:
        super().__init__(form, inplace)
        self.gate = nn.Linear(form.width, 2)
        self.aux: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x if self.form.last else x.movedim(1, -1)).softmax(dim=-1)
        self.aux = gates.mean().detach()
        gates = gates.movedim(-1, 0).unsqueeze(self.form.axis + 1)
        return (torch.stack([self.first(x), self.act(self.second(x))]) * gates).sum(dim=0)


class Fourier(Branch):
    """GFNet's: places are filtered by their frequencies."""

    def __init__(self, form: Form, inplace: bool) -> None:
        super().__init__(form, inplace)
        self.scale = nn.Parameter(torch.randn(form.width))

    def forward(self, x: Tensor) -> Tensor:
        axis = self.form.places[0]
        x = self.first(x)
        y = torch.fft.rfft(x, dim=axis, norm="ortho") * self.form.per_channel(self.scale)
        return self.second(torch.fft.irfft(y, n=x.shape[axis], dim=axis, norm="ortho"))


BRANCHES: tuple[type[Branch], ...] = (
    Mlp, Convolutions, Attention, Windows, TokenMixing, SqueezeExcite, Experts, Fourier,
)  # fmt: skip
SMALL_BRANCHES: tuple[type[Branch], ...] = (Mlp, TokenMixing, SqueezeExcite)


# What a forward does besides ------------------------------------------------------------------


def nothing(module: nn.Module, y: Tensor) -> Tensor:
    return y


def drops_out(module: nn.Module, y: Tensor) -> Tensor:
    return F.dropout(y, 0.25, module.training)


def draws_noise(module: nn.Module, y: Tensor) -> Tensor:
    return y * (0.5 + torch.rand_like(y))


def forks_randomness(module: nn.Module, y: Tensor) -> Tensor:
    with torch.random.fork_rng():
        noise = torch.rand(y.shape, dtype=y.dtype)
    return y * (0.5 + noise)


def asks_pythons_randomness(module: nn.Module, y: Tensor) -> Tensor:
    return y * (0.5 + random.random()) * float(0.5 + np.random.rand())


def counts(module: nn.Module, y: Tensor) -> Tensor:
    module.runs += 1
    return y * (1 + 1 / module.runs)


def remembers(module: nn.Module, y: Tensor) -> Tensor:
    module.aux = y.detach().square().mean()
    return y * (1 + module.aux).rsqrt()


def switches_autocast(module: nn.Module, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not torch.is_autocast_enabled("cpu")):
        mixed = y.flatten(1) @ y.flatten(1).T
    with torch.autocast("cpu", enabled=False):
        return y * mixed.to(y.dtype).mean().tanh()


def stops_gradients(module: nn.Module, y: Tensor) -> Tensor:
    with torch.no_grad():
        size = y.abs().amax()
    return y / (1 + size)


def asks_shapes_and_modes(module: nn.Module, y: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.requires_grad is None:
        raise TypeError
    if module.training and y.shape[0] > 1:
        return y * 2
    return y if torch.is_grad_enabled() else y * 1


def asks_the_data(module: nn.Module, y: Tensor) -> Tensor:
    return y * 2 if y.mean().item() > 0 else y.sin()


Habit = Callable[[nn.Module, Tensor], Tensor]
REPEATABLE: tuple[Habit, ...] = (  # as checkpointing runs a forward twice
    nothing, drops_out, draws_noise, remembers, switches_autocast, stops_gradients,
    asks_shapes_and_modes,
)  # fmt: skip
HABITS: tuple[Habit, ...] = (
    *REPEATABLE, forks_randomness, asks_pythons_randomness, counts, asks_the_data,
)  # fmt: skip


# How a block adds -----------------------------------------------------------------------------


class Block(nn.Module):
    """A block of two branches, and a habit of its forward."""

    repeatable = True  # by checkpointing
    may_be_overwritten = True  # its output, which autograd has not saved
    writes_input = False

    def __init__(self, form: Form, one: nn.Module, two: nn.Module, norm: str, habit: Habit) -> None:
        super().__init__()
        self.form, self.one, self.two, self.habit = form, one, two, habit
        self.norm, self.norm2 = normalization(form, norm), normalization(form, norm)
        self.act = nn.ReLU(inplace=True)
        self.runs, self.aux = 0, None
        self.checkpointing = True


class PreNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.habit(self, self.one(self.norm(x)))
        note(self, x, "residual")
        x = x + self.two(self.norm2(x))
        note(self, x, "blocks", "residual")
        return x


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        both = torch.add(self.habit(self, self.one(x)), x)
        note(self, both, "residual")
        x = self.norm(both)
        both = torch.add(input=x, other=self.two(x), alpha=1)
        note(self, both, "residual")
        x = self.norm2(both)
        note(self, x, "blocks")
        return x


class Parallel(Block):
    """Attention and MLP side by side (ViT-22B), as one sum or two."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        branch = self.one(y) + self.habit(self, self.two(y))
        note(self, branch, "residual")
        x = x + branch
        note(self, x, "blocks", "residual")
        return x


class LayerScale(Block):
    """ConvNeXt's and CaiT's: a scale per channel, and whole samples dropped."""

    def __init__(self, form: Form, *parts: Any) -> None:
        super().__init__(form, *parts)
        self.gamma = nn.Parameter(torch.rand(form.width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.habit(self, self.two(self.one(x))) * self.form.per_channel(self.gamma)
        if self.training:
            y = y * torch.rand(len(y), dtype=y.dtype).round().view(-1, *[1] * (y.ndim - 1))
        x = x + y
        note(self, x, "blocks", "residual")
        return x


class InPlace(Block):
    """ResNet's: added and activated in place."""

    may_be_overwritten = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.habit(self, self.norm2(self.two(self.act(self.norm(self.one(x))))))
        y += x
        note(self, y, "residual")
        y = self.act(y)
        note(self, y, "blocks")
        return y


class WritesInput(Block):
    """Scales its input in place, which is the block's before."""

    repeatable = False
    writes_input = True

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        x = x.add(self.habit(self, self.two(self.one(x))))
        note(self, x, "blocks", "residual")
        return x


class WritesItems(Block):
    def forward(self, x: Tensor) -> Tensor:
        held = {"x": self.one(x)}
        held["x"] += x
        note(self, held["x"], "residual")
        held["x"].mul_(2)
        held["x"] = self.habit(self, held["x"]) + self.two(x)
        note(self, held["x"], "blocks", "residual")
        return held["x"]


class Loop(Block):
    """One place, passed several times; the last pass is returned."""

    def forward(self, x: Tensor) -> Tensor:
        for step, branch in enumerate((self.one, self.two, self.one)):
            x = x + self.norm(branch(x))
            note(self, x, "residual", *["blocks"] * (step == 2))
        return x


class LoopInside(Block):
    def forward(self, x: Tensor) -> Tensor:
        for step in range(2):
            x = x + self.norm(self.two(self.one(x))) / (1 + step)
            note(self, x, "residual")
        x = self.habit(self, x)
        note(self, x, "blocks")
        return x


class Comprehension(Block):
    def forward(self, x: Tensor) -> Tensor:
        sums = [x + branch(self.norm(x)) for branch in (self.one, self.two)]
        for each in sums:
            note(self, each, "residual")
        x = self.habit(self, torch.stack(sums).mean(dim=0))
        note(self, x, "blocks")
        return x


class Gated(Block):
    """Highway networks': the gate says how much of the input passes."""

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.norm(self.two(x)))
        x = x * (1 - gate) + self.habit(self, self.one(x)) * gate
        note(self, x, "blocks", "residual")
        return x


class TwoStreams(Block):
    """Reversible networks': each half of the channels is changed by the other."""

    def __init__(self, form: Form, one: nn.Module, two: nn.Module, *parts: Any) -> None:
        super().__init__(form, one, two, *parts)
        self.half = half = replace(form, width=form.width // 2)
        self.one, self.two = Mlp(half, inplace=True), Mlp(half, inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(x).chunk(2, dim=self.form.axis)
        left = left + self.one(right)
        note(self, left, "residual")
        right = right + self.habit(self, self.two(left))
        note(self, right, "residual")
        x = torch.cat([left, right], dim=self.form.axis)
        note(self, x, "blocks")
        return x


class Checkpointed(Block):
    """A method that adds, run again in the backward pass."""

    def part(self, x: Tensor) -> Tensor:
        x = x + self.one(self.norm(x))
        note(self, x, "residual")
        return self.norm2(x)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.part, x, use_reentrant=False) if self.checkpointing else self.part(x)
        x = y + self.habit(self, self.two(y))
        note(self, x, "blocks", "residual")
        return x


class Merge(nn.Module):
    """BERT's output layer: adds its branch to the input that it is also given."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__()
        self.form, self.dense, self.norm = form, dense(form), normalization(form, norm)

    def forward(self, branch: Tensor, skip: Tensor) -> Tensor:
        both = self.dense(branch) + skip
        note(self, both, "residual")
        return self.norm(both)


class WithHelper(Block):
    def __init__(self, form: Form, one: nn.Module, two: nn.Module, norm: str, habit: Habit) -> None:
        super().__init__(form, one, two, norm, habit)
        self.merge = Merge(form, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(self.two(self.habit(self, self.one(x))), skip=x)
        note(self, x, "blocks")
        return x


class Pair(NamedTuple):
    hidden: Tensor
    weights: Tensor


@dataclass
class Result:
    logits: Any
    other: Any = None


class ReturnsTuple(Block):
    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, dict[str, int]]:
        y = self.one(self.norm(x))
        x = x + self.habit(self, self.two(y)) * scale
        note(self, x, "blocks", "residual")
        return x, {"length": len(x)}


class ReturnsDictionary(Block):
    def forward(self, x: Tensor) -> dict[str, Any]:
        found = {"hidden": x + self.habit(self, self.two(self.one(x))), "none": None}
        note(self, found["hidden"], "blocks", "residual")
        return found


class ReturnsNamedTuple(Block):
    def forward(self, x: Tensor) -> Pair:
        y = self.one(self.norm(x))
        both = x + self.two(y)
        note(self, both, "residual")
        pair = Pair(self.habit(self, both), y.detach())
        note(self, pair.hidden, "blocks")
        return pair


class ReturnsDataclass(Block):
    def forward(self, x: Tensor) -> Result:
        x = x + self.habit(self, self.two(self.norm(self.one(x))))
        note(self, x, "blocks", "residual")
        return Result([x], other=len(x))


class Contexts(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False), torch.profiler.record_function("block"):
            y = self.one(self.norm(x))
            with contextlib.suppress(ZeroDivisionError), torch.enable_grad():
                x = x + y
        note(self, x, "residual")
        x = self.norm2(self.habit(self, self.two(x)))
        note(self, x, "blocks")
        return x


class StochasticDepth(Block):
    """Is sometimes skipped as a whole, in training."""

    repeatable = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or random.random() > 0.4:
            x = x + self.habit(self, self.two(self.one(self.norm(x))))
        note(self, x, "blocks", "residual")
        return x


class Ancestor(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(self.norm(x))
        note(self, x, "residual")
        return x.sin()


class Inherited(Ancestor):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x = y + self.habit(self, self.two(self.norm2(y)))
        note(self, x, "blocks", "residual")
        return x


class Functions(Block):
    """Adds in a function in a method, and in a lambda."""

    def method(self, x: Tensor) -> Tensor:
        def added(y: Tensor) -> Tensor:
            both = x + self.one(y)
            note(self, both, "residual")
            return both.sin()

        return added(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        merge = lambda y: self.habit(self, self.two(y)) + y  # noqa: E731
        x = merge(self.method(x))
        note(self, x, "blocks", "residual")
        return x


def doubled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        x = function(*args, **kwargs) * 2
        note(args[0], x, "blocks")
        return x

    return wrapper


class Decorated(Block):
    """Returns twice what its forward is written to."""

    def named(self, x: Tensor) -> Tensor:
        x = x + self.two(self.habit(self, self.one(x)))
        note(self, x, "residual")
        return self.norm(x)

    @doubled
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return self.named(x)


class Conditional(Block):
    """MBConv's: every other block has no skip."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.skip = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.two(self.one(x)))
        x = x + self.habit(self, y) if self.skip else self.habit(self, y)
        note(self, x, "blocks", *["residual"] * self.skip)
        return x


class Moved(Block):
    """Adds with channels on the other side than its input has them."""

    def __init__(self, form: Form, *parts: Any) -> None:
        super().__init__(form, *parts)
        self.moved = replace(form, last=not form.last)
        self.inner, self.inner_norm = Mlp(self.moved, inplace=True), normalization(self.moved)

    def forward(self, x: Tensor) -> Tensor:
        here, there = self.form.axis, self.moved.axis
        y = self.two(self.one(x)).movedim(here, there)
        y = y + self.habit(self, self.inner(self.inner_norm(y)))
        note(self, y, "residual", axis=there)
        x = y.movedim(there, here)
        note(self, x, "blocks")
        return x


class Flattened(Block):
    """Adds with all places on one axis (MobileViT's transformers)."""

    def __init__(self, form: Form, *parts: Any) -> None:
        super().__init__(form, *parts)
        self.tokens = replace(form, ndim=3, last=True, place=form.place ** (form.ndim - 2))
        self.inner, self.inner_norm = Attention(self.tokens, False), normalization(self.tokens)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1, -2) if self.form.last else x.flatten(2).transpose(1, 2)
        y = y + self.inner(self.inner_norm(y))
        note(self, y, "residual", axis=2)
        y = (y if self.form.last else y.transpose(1, 2)).reshape(x.shape)
        x = y + self.habit(self, self.two(self.one(y)))
        note(self, x, "blocks", "residual")
        return x


class Partitioned(Block):
    """Adds in windows, which count as samples of the batch (MaxViT)."""

    def __init__(self, form: Form, *parts: Any) -> None:
        super().__init__(form, *parts)
        self.inner = Mlp(form, inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        along = self.form.places[0]
        n, length = len(x), x.shape[along]
        windows = 2 if length % 2 == 0 else 1
        y = x.unflatten(along, (windows, -1)).movedim(along, 1).flatten(0, 1)
        y = y + self.inner(self.norm(y))
        note(self, y, "residual")
        y = y.unflatten(0, (n, windows)).movedim(1, along).flatten(along, along + 1)
        x = y + self.habit(self, self.two(self.one(y)))
        note(self, x, "blocks", "residual")
        return x


ADDING: tuple[type[Block], ...] = (
    PreNorm, PostNorm, Parallel, LayerScale, InPlace, WritesInput, WritesItems, Loop, LoopInside,
    Comprehension, Gated, TwoStreams, Checkpointed, WithHelper, ReturnsTuple, ReturnsDictionary,
    ReturnsNamedTuple, ReturnsDataclass, Contexts, StochasticDepth, Inherited, Functions, Decorated,
    Conditional, Moved, Flattened, Partitioned,
)  # fmt: skip


class Plain(Block):
    """A block that adds nothing; one beside others that do."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.habit(self, self.two(self.one(x))))
        note(self, x, "blocks")
        return x


class Dense(Block):
    """DenseNet's: concatenates, then shrinks."""

    def __init__(self, form: Form, *parts: Any) -> None:
        super().__init__(form, *parts)
        self.shrink = dense(replace(form, width=2 * form.width), into=form.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.habit(self, self.two(self.norm2(self.one(self.norm(x)))))
        x = self.shrink(torch.cat([x, y], dim=self.form.axis))
        note(self, x, "blocks")
        return x


class Inception(Block):
    """Branches side by side, each a part of the channels."""

    def __init__(self, form: Form, *parts: Any) -> None:
        super().__init__(form, *parts)
        self.left, self.right = dense(form, form.width - 2), dense(form, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        parts = [self.left(self.one(x)), self.right(self.habit(self, self.two(x)))]
        x = torch.cat(parts, dim=self.form.axis)
        note(self, x, "blocks")
        return x


BLOCKS = (ADDING, (Dense, Inception), (Plain,))  # what occurs together

# Between stages, and around them --------------------------------------------------------------


class Stem(nn.Module):
    """The first layer, with a position embedding where asked for: no residual add."""

    channels = 3

    def __init__(self, form: Form, positions: bool) -> None:
        super().__init__()
        self.form = form
        self.layer = dense(replace(form, width=self.channels), form.width)
        self.norm = normalization(form)
        self.positions = nn.Parameter(torch.randn(1, *form.shape[1:])) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x))
        return x if self.positions is None else x + self.positions


class Transition(nn.Module):
    """What stands between two stages: takes activations of one form and makes those of another."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__()
        self.form, self.into = form, self.leads_to(form)
        self.norm, self.after = normalization(form, norm), normalization(self.into, norm)

    @staticmethod
    def leads_to(form: Form) -> Form:
        return replace(form, place=form.place // 2)


class Strided(Transition):
    """Halves the places: a strided convolution, where channels come last on a moved view."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__(form, norm)
        self.conv = _of_axes(form, "Conv")(form.width, form.width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = self.conv(x.movedim(-1, 1)).movedim(1, -1) if self.form.last else self.conv(x)
        x = self.after(x)
        note(self, x, "downsample")
        return x


class Pooled(Transition):
    """Halves the places by a pooling, and widens."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__(form, norm)
        self.pool = _of_axes(form, "AvgPool")(2)
        self.layer = dense(form, self.into.width)

    @staticmethod
    def leads_to(form: Form) -> Form:
        return replace(form, place=form.place // 2, width=form.width + 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = self.pool(x.movedim(-1, 1)).movedim(1, -1) if self.form.last else self.pool(x)
        x = self.layer(x)
        x = self.after(x)
        note(self, x, "downsample")
        return x


class Merged(Transition):
    """Swin's patch merging: neighbours become channels of one place."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__(form, norm)
        parts = 2 ** (form.ndim - 2)
        self.layer = dense(replace(form, width=parts * form.width), form.width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.norm(x)]
        for axis in self.form.places:
            even = 2 * (x.shape[axis] // 2)
            cut = [part.narrow(axis, 0, even).unflatten(axis, (-1, 2)) for part in parts]
            parts = [half for part in cut for half in part.unbind(axis + 1)]
        x = self.layer(torch.cat(parts, dim=self.form.axis))
        x = self.after(x)
        note(self, x, "downsample")
        return x


class Turned(Transition):
    """From channels first to channels last, or back, at the same resolution."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__(form, norm)
        self.layer = dense(self.into)

    @staticmethod
    def leads_to(form: Form) -> Form:
        return replace(form, last=not form.last)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.norm(x).movedim(self.form.axis, self.into.axis)))


class Tokens(Transition):
    """From any form to a sequence of tokens."""

    def __init__(self, form: Form, norm: str) -> None:
        super().__init__(form, norm)
        self.layer = dense(self.into)

    @staticmethod
    def leads_to(form: Form) -> Form:
        return replace(form, ndim=3, last=True, place=form.place ** (form.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        tokens = x.flatten(1, -2) if self.form.last else x.flatten(2).transpose(1, 2)
        return self.after(self.layer(tokens))


HALVING = (Strided, Pooled, Merged)
TRANSITIONS = (*HALVING, Turned, Tokens)


class Stage(nn.Module):
    """A run of blocks, passed once or, with shared weights, several times."""

    def __init__(
        self, transition: Transition | None, blocks: list[nn.Module], repeats: int, saves: bool
    ) -> None:
        super().__init__()
        self.transition, self.blocks = transition, nn.ModuleList(blocks)
        self.repeats, self.checkpointing = repeats, saves

    def forward(self, x: Tensor) -> Tensor:
        if self.transition is not None:
            x = self.transition(x)
        for _ in range(self.repeats):
            for block in self.blocks:
                saves = self.checkpointing and self.training
                x = next(tensors(checkpoint(block, x, use_reentrant=False) if saves else block(x)))
        return x


class Cosine(nn.Module):
    """Compares unit vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)) * 10


class Product(nn.Module):
    """A weight computed from a direction and a length, and a product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(3, width))
        self.length = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.length * self.direction / self.direction.norm(dim=1, keepdim=True)
        return x @ weight.t()


HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(width, 3),
    "cosine": Cosine,
    "product": Product,
    "dropout": lambda width: nn.Sequential(nn.Dropout(0.1), nn.Linear(width, 3)),
}
OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits, None),
    "dictionary": lambda logits: {"logits": logits, "n": 1},
    "dataclass": Result,
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {  # over the axis of places, which is the second
    "mean": lambda tokens: tokens.mean(dim=1),
    "max": lambda tokens: tokens.amax(dim=1),
    "first": lambda tokens: tokens[:, 0],
}


class Network(nn.Module):
    """Built from a `Design`, which is what Hypothesis draws."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        form = design.form
        self.stem = Stem(form, design.positions)
        self.stages = nn.ModuleList()
        for stage in design.stages:
            transition = stage.transition and stage.transition(form, stage.norm)
            form = form if transition is None else transition.into
            blocks = [part.build(form, stage.norm, at) for at, part in enumerate(stage.parts)]
            self.stages.append(Stage(transition, blocks, stage.repeats, stage.saves))
        self.long = dense(form) if design.long and form == design.form else None
        self.form, self.norm = form, normalization(form)
        self.head = HEADS[design.head](form.width)
        self.pool, self.output = design.pool, design.output

    def forward(self, x: Tensor) -> Any:
        early = x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        if self.long is not None:
            x = x + self.long(early)
            note(self, x, "residual")
        x = self.norm(x).movedim(self.form.axis, -1).flatten(1, -2)
        x = POOLS[self.pool](x)
        if isinstance(self.head, nn.Sequential):
            x = self.head[0](x)
            note(self.head[1], x, "head", axis=1, position="input")
            return OUTPUTS[self.output](self.head[1](x))
        note(self.head, x, "head", axis=1, position="input")
        return OUTPUTS[self.output](self.head(x))


# What Hypothesis draws ------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A block: its kind, its branches, its habit; printed as it would be written."""

    kind: type[Block]
    branches: tuple[type[Branch], type[Branch]]
    habit: Habit
    inplace: bool

    def build(self, form: Form, norm: str, at: int) -> Block:
        one, two = (branch(form, self.inplace) for branch in self.branches)
        block = self.kind(form, one, two, norm, self.habit)
        if isinstance(block, Conditional):
            block.skip = at % 2 == 0
        return block

    def __repr__(self) -> str:
        names = ", ".join(branch.__name__ for branch in self.branches)
        return f"{self.kind.__name__}({names}; {self.habit.__name__}{' in place' * self.inplace})"


@dataclass(frozen=True)
class StageDesign:
    """A stage: what stands before it, its blocks, how often they run, whether checkpointed."""

    transition: type[Transition] | None
    parts: tuple[Part, ...]
    norm: str
    repeats: int
    saves: bool


@dataclass(frozen=True)
class Design:
    """A network, to be built as often as needed, always the same."""

    form: Form
    stages: tuple[StageDesign, ...]
    head: str = "linear"
    pool: str = "mean"
    output: str = "tensor"
    positions: bool = False
    long: bool = False
    seed: int = field(default=0)

    def build(self) -> Network:
        """Return the network in float64, in train mode."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Network(self).double()

    def x(self) -> Tensor:
        """Return an input of it."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = replace(self.form, width=Stem.channels).shape
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    """Draw 3 to 5 axes, channels first or last, often with all sizes alike."""
    ndim, last = draw(st.integers(3, 5)), draw(st.booleans())
    if draw(st.integers(0, 2)) == 2:
        return Form(ndim, last, width=4, place=4, batch=draw(st.sampled_from((2, 4))))
    place = draw(st.integers(2, 4 if ndim < 5 else 3))
    return Form(ndim, last, draw(st.sampled_from((4, 6))), place, draw(st.integers(2, 4)))


@st.composite
def designs(draw: st.DrawFn, kind: type[Block]) -> Design:
    """Draw a network of a block of this kind and others that go with it."""
    form = first = draw(forms())
    kinds = next(kinds for kinds in BLOCKS if kind in kinds)
    # Whether blocks may write into what the one before returned.
    writes = kind.may_be_overwritten and (kind.writes_input or draw(st.booleans()))
    stages = []
    for at in range(draw(st.sampled_from((1, 1, 2)))):
        transition = draw(st.sampled_from((None, *TRANSITIONS))) if at else None
        if transition in HALVING and form.place // 2 < (2 if form.ndim == 3 else 1):
            transition = None  # a single token is a summary, and no lower resolution
        if transition is not None:
            form = transition.leads_to(form)
        norm = draw(st.sampled_from(("batch", "group", "channel")))
        saves = not writes and (at > 0 or kind.repeatable) and draw(st.integers(0, 3)) == 0
        parts = [draw(_parts(form, kinds if at else (kind,), writes, saves))]
        if kinds == (Plain,) or (not at and draw(st.integers(0, 2)) == 0):
            # Before or behind it; of Plain, only a run shows that they are blocks.
            parts.insert(draw(st.integers(0, 1)), draw(_parts(form, kinds, writes, saves)))
        if kinds is ADDING and draw(st.integers(0, 4)) == 4:
            parts.append(draw(_parts(form, (Plain,), writes, saves)))
        repeats = draw(st.sampled_from((1, 1, 1, 2)))
        stages.append(StageDesign(transition, tuple(parts), norm, repeats, saves))
    return Design(
        first,
        tuple(stages),
        head=draw(st.sampled_from(sorted(HEADS))),
        pool=draw(st.sampled_from(sorted(POOLS))),
        output=draw(st.sampled_from(sorted(OUTPUTS))),
        positions=draw(st.booleans()),
        long=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def _parts(
    form: Form, kinds: tuple[type[Block], ...], writes: bool, saves: bool
) -> st.SearchStrategy[Part]:
    allowed = [
        kind
        for kind in kinds
        if (kind.may_be_overwritten if writes else not kind.writes_input)
        and (kind.repeatable or not saves)
    ]
    one, two = (
        st.sampled_from([b for b in kinds if form.last or b is not TokenMixing])
        for kinds in (BRANCHES, SMALL_BRANCHES)
    )
    habit = st.sampled_from(REPEATABLE if saves else HABITS)
    return st.builds(Part, st.sampled_from(allowed), st.tuples(one, two), habit, st.booleans())
