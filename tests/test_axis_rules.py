"""What functions do to channel axes, on examples in which all sizes are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placement_rules import LayoutError, PlacementError, parse, record, resolve

N = 6  # every size: of the batch, of the channels, of each axis of places


@torch.library.custom_op("vcreg_tests::linear", mutates_args=())
def foreign_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Has the name of a function of torch, and does something else: axes 1 and 2 change places."""
    return x.transpose(1, 2).contiguous() * weight.sum()


@foreign_linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x.transpose(1, 2).contiguous())


class Made(nn.Module):
    """Does one function to a tensor whose channels are known; the function's result is the site."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, x: Tensor) -> Any:
        return self.function(x) if self.module is None else self.function(self.module, x)


class Net(nn.Module):
    """Convolves (B, C, …) and hands the result to the function; nothing is known behind that."""

    def __init__(self, made: Made, places: int) -> None:
        super().__init__()
        convolution = (nn.Linear, nn.Conv1d, nn.Conv2d)[places]
        self.first = convolution(N, N, *([1] if places else []))
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.first(x)) * 2


def found_axis(
    net: nn.Module, *inputs: Tensor, rule: str = "modules('made')", other_sizes: bool = False
) -> int | None:
    """Return the channel axis that is found, None where it is refused."""
    recording = record(net, inputs)
    if not other_sizes:
        recording.run_again = lambda: iter(())
    try:
        (site,) = resolve(recording, parse(rule).require(recording))
    except (LayoutError, PlacementError):
        return None
    return site.layout.axis


REFUSED = None
# A function of (B, C, L), and the axis of its result that holds the channels.
LINES: dict[str, tuple[Callable[[Tensor], Tensor], int | None]] = {
    "select a place": (lambda x: x.select(2, 0), 1),
    "select a channel": (lambda x: x.select(1, 0), REFUSED),
    "select a sample": (lambda x: x.select(0, 0), 0),
    "quantile over places": (lambda x: x.quantile(0.5, dim=2), 1),
    "quantile over channels": (lambda x: x.quantile(0.5, dim=1), REFUSED),
    "quantile, kept": (lambda x: x.quantile(0.5, 2, True), 1),
    "quantiles": (lambda x: x.quantile(torch.full((N,), 0.5), dim=2), 2),
    "quantile over samples": (lambda x: torch.quantile(x, 0.5, 0), 0),
    "vector_norm over places": (lambda x: torch.linalg.vector_norm(x, dim=-1), 1),
    "vector_norm over channels": (lambda x: torch.linalg.vector_norm(x, 2, 1), REFUSED),
    "norm(p, dim)": (lambda x: x.norm(2, -1), 1),
    "norm over channels": (lambda x: torch.norm(x, p=2, dim=1), REFUSED),
    "norm over samples": (lambda x: x.norm(1, 0), 0),
    "matrix norm": (lambda x: torch.linalg.norm(x, dim=(0, 2)), 0),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x * 2, dim=2), 1),
    "cosine_similarity over channels": (lambda x: F.cosine_similarity(x, x * 2), REFUSED),
    "pairwise_distance": (lambda x: F.pairwise_distance(x, x * 2), 1),
    "trapezoid": (lambda x: torch.trapezoid(x, dim=2), 1),
    "trapezoid over channels": (lambda x: torch.trapezoid(x, dim=1), REFUSED),
    "trapezoid over samples": (lambda x: torch.trapz(x, dim=0), 0),
    "view_as_complex": (
        lambda x: torch.view_as_complex(torch.stack([x, x], -1).contiguous()).abs(), 1
    ),
    "pairs of places": (lambda x: torch.view_as_complex(x.view(N, N, N // 2, 2)).abs(), 1),
    "cumsum": (lambda x: x.cumsum(1), 1),
    "sort": (lambda x: x.sort(2)[0], 1),
    "sort, transposed": (lambda x: torch.sort(x.transpose(1, 2), dim=1)[0], 2),
    "topk": (lambda x: x.topk(N, dim=2)[0], 1),
    "kthvalue": (lambda x: x.kthvalue(2)[0], 1),
    "max over places": (lambda x: x.max(2)[0], 1),
    "max over samples": (lambda x: x.max(0).values, 0),
    "max over channels": (lambda x: x.max(dim=1)[0], REFUSED),
    "median": (lambda x: x.median(0)[0], 0),
    "std_mean": (lambda x: torch.std_mean(x, 0)[1], 0),
    "mean over samples": (lambda x: x.mean(0), 0),
    "std, kept": (lambda x: x.std(2, keepdim=True), 1),
    "std of everything": (lambda x: x.std(False).expand(N, N, N), REFUSED),
    "fft": (lambda x: torch.fft.fft(x).abs(), 1),
    "fft over channels": (lambda x: torch.fft.fft(x, dim=1).abs(), REFUSED),
    "rfft over samples": (lambda x: torch.fft.rfft(x, N, 0).real, 1),
    "windows": (lambda x: x.unfold(2, N, 1), 1),
    "windows of samples": (lambda x: x.unfold(0, N, 1), 1),
    "gather": (lambda x: x.gather(2, torch.zeros(N, N, N, dtype=torch.long)), 1),
    "gather channels": (lambda x: x.gather(1, torch.zeros(N, N, N, dtype=torch.long)), REFUSED),
    "index_select": (lambda x: x.index_select(1, torch.arange(N)), 1),
    "diff": (lambda x: x.diff(dim=2), 1),
    "roll": (lambda x: x.roll(1, 1), 1),
    "flip": (lambda x: x.flip(1, 2), 1),
    "kron": (lambda x: torch.kron(x, x), REFUSED),
    "tensordot over places": (lambda x: torch.tensordot(x, torch.ones(N, N), ([2], [0])), 1),
    "tensordot over samples": (lambda x: torch.tensordot(x, torch.ones(N, N), ([0], [0])), 0),
    "tensordot over channels": (
        lambda x: torch.tensordot(x, torch.ones(N, N, N), ([1], [0])), REFUSED
    ),
    "bmm on the left": (lambda x: torch.bmm(torch.ones(N, N, N), x.transpose(1, 2)), 2),
    "bmm on the right": (lambda x: torch.bmm(x, torch.ones(N, N, N)), 1),
    "bmm over channels": (lambda x: torch.bmm(torch.ones(N, N, N), x), REFUSED),
    "baddbmm": (lambda x: torch.baddbmm(torch.ones(N, N, N), x, torch.ones(N, N, N)), 1),
    "einsum": (lambda x: torch.einsum("bcl,blm->bmc", x, torch.ones(N, N, N)), 2),
    "einsum over channels": (lambda x: torch.einsum("bcl,bcm->bml", x, torch.ones(N, N, N)), None),
    "einsum with dots": (lambda x: torch.einsum("...l,ml->m...", x, torch.ones(N, N)), 2),
    "einsum without arrow": (lambda x: torch.einsum("bzl,la", x, torch.ones(N, N)), 2),
    "attention over places": (
        lambda x: F.scaled_dot_product_attention(*[x.transpose(1, 2)[:, None]] * 3), 3
    ),
    "attention over channels": (lambda x: F.scaled_dot_product_attention(*[x[:, None]] * 3), 2),
    "interpolate": (lambda x: F.interpolate(x, size=N), 1),
    "pad": (lambda x: F.pad(x, (1, 1))[:, :, 1:-1], 1),
    "repeat": (lambda x: x.repeat(N, 1, 1, 1), 2),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, dim=2), 1),
    "flattened repeat_interleave": (lambda x: x.repeat_interleave(2).view(2 * N, N, N), REFUSED),
    "take_along_dim": (
        lambda x: x.take_along_dim(torch.zeros(N, N, N, dtype=torch.long), dim=1), REFUSED
    ),
    "index by a list": (lambda x: x[:, :, [0, 1, 2, 3, 4, 5]], REFUSED),
    "index by a truth value": (lambda x: x[True][0], REFUSED),
    "type_as": (lambda x: torch.ones(N, N, N).type_as(x), REFUSED),
    "to another's type": (lambda x: torch.ones(N, N, N).to(x), REFUSED),
    "outer": (lambda x: torch.outer(x[0, :, 0], x[0, :, 1]), REFUSED),
    "matrix inverse": (torch.linalg.pinv, REFUSED),
    "cov": (lambda x: torch.cov(x[0]), REFUSED),
    "cdist": (lambda x: torch.cdist(x, x), REFUSED),
    "diagonal": (lambda x: x.diagonal(dim1=0, dim2=1), REFUSED),
    "an operator of aten": (lambda x: torch.ops.aten.mul.Tensor(x, 2.0), 1),
    "an operator of its own": (lambda x: foreign_linear(x, torch.ones(N)), REFUSED),
    "view_as": (lambda x: x.transpose(1, 2).contiguous().view_as(x), 2),
    "softmax over channels": (lambda x: x.softmax(1), 1),
    "glu over places": (lambda x: F.glu(x, 2), 1),
    "unbind": (lambda x: x.unbind(0)[0], 0),
    "narrow": (lambda x: x.narrow(2, 0, N), 1),
    "stack": (lambda x: torch.stack([x[:, :, 0]] * N, dim=1), 2),
    "scatter": (
        lambda x: x.scatter(2, torch.zeros(N, N, N, dtype=torch.long), torch.zeros(N, N, N)), 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_functions_of_lines(name: str) -> None:
    function, expected = LINES[name]
    assert found_axis(Net(Made(function), 1), torch.randn(N, N, N)) == expected


# The same of (B, C, H, W).
PLANES: dict[str, tuple[Callable[[Tensor], Tensor], int | None]] = {
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), 1),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 1),
    "grid_sample": (
        lambda x: F.grid_sample(x, torch.zeros(N, N, N, 2), align_corners=False), 1
    ),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=1.0, mode="bilinear"), 1),
    "patches": (lambda x: F.unfold(x, 1), REFUSED),
    "fold": (lambda x: F.fold(x.flatten(2), (N, N), 1), REFUSED),
    "fft2": (lambda x: torch.fft.fft2(x).abs(), 1),
    "ifft2": (lambda x: torch.fft.ifft2(x, dim=(0, 2)).abs(), 1),
    "fft2 over channels": (lambda x: torch.fft.fft2(x, dim=(1, 2)).abs(), REFUSED),
    "einsum": (lambda x: torch.einsum("nchw,nchv->nwvc", x, x * 2), 3),
    "norms": (lambda x: x.norm(dim=(2, 3)), 1),
    "max twice": (lambda x: x.amax(3).max(2)[0], 1),
    "rot90": (lambda x: x.rot90(1, (1, 2)), REFUSED),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), 1),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, N), 1),
    "max_pool2d with indices": (lambda x: F.max_pool2d(x, 1, return_indices=True)[0], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANES)
def test_functions_of_planes(name: str) -> None:
    function, expected = PLANES[name]
    assert found_axis(Net(Made(function), 2), torch.randn(N, N, N, N)) == expected


# Modules that are given (L, B, C) or (B, L, C), whose channels come last.
LAST: dict[str, tuple[nn.Module, Callable[..., Tensor], int | None]] = {
    "attention, batch first": (
        nn.MultiheadAttention(N, 2, batch_first=True), lambda m, x: m(x, x, x)[0], 2
    ),
    "attention": (nn.MultiheadAttention(N, 2), lambda m, x: m(x, x, x)[0], 2),
    "its weights": (
        nn.MultiheadAttention(N, 2, batch_first=True), lambda m, x: m(x, x, x)[1], REFUSED
    ),
    "LSTM": (nn.LSTM(N, N, batch_first=True), lambda m, x: m(x)[0], 2),
    "its last state": (nn.LSTM(N, N), lambda m, x: m(x)[1][0], 2),
    "LSTM, both ways": (nn.LSTM(N, N // 2, bidirectional=True), lambda m, x: m(x)[0], 2),
    "GRU": (nn.GRU(N, N), lambda m, x: m(x)[0], 2),
    "RNN": (nn.RNN(N, N), lambda m, x: m(x)[0], 2),
    "a cell": (nn.GRUCell(N, N), lambda m, x: m(x[0]), 1),
    "an LSTM's cell": (nn.LSTMCell(N, N), lambda m, x: m(x[0])[0], 1),
    "bilinear": (nn.Bilinear(N, N, N), lambda m, x: m(x, x), 2),
    "a layer of a transformer": (
        nn.TransformerEncoderLayer(N, 2, N, batch_first=True), lambda m, x: m(x), 2
    ),
    "a mean over places": (nn.Identity(), lambda m, x: m(x).mean(1), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
def test_modules_with_channels_last(name: str) -> None:
    module, function, expected = LAST[name]
    assert found_axis(Net(Made(function, module), 0), torch.randn(N, N, N)) == expected


# Sizes that are equal by chance -----------------------------------------------------------------


def rearranged(x: Tensor) -> Tensor:
    """Right where C = L alone: it names the axes of (B, C, L) anew, and moves nothing."""
    return x.reshape(x.shape[0], x.shape[2], x.shape[1])


def mixed_with_samples(x: Tensor) -> Tensor:
    return x.reshape(x.shape[1], x.shape[0], x.shape[2])


@pytest.mark.parametrize("function", [rearranged, mixed_with_samples])
def test_an_axis_that_sizes_give_by_chance_is_refused(function) -> None:
    net = Net(Made(function), 1)
    recording = record(net, (torch.randn(N, N, N),))
    message = r"cannot be inferred with certainty: of the tensor of shape \(6, 6, 6\), axis \d"
    with pytest.raises(LayoutError, match=message + r"[\s\S]*on an input of another size"):
        resolve(recording, parse("modules('made')").require(recording))


class OnlySix(nn.Module):
    """Takes no other size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(N, N)
        self.places = nn.Parameter(torch.randn(N, N))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != N:
            raise ValueError("six examples, please")
        return self.linear(x + self.places)


def test_a_model_that_takes_one_size_is_believed() -> None:
    assert (
        found_axis(OnlySix(), torch.randn(N, N, N), rule="modules('linear')", other_sizes=True) == 2
    )


@pytest.mark.parametrize(("length", "times"), [(N, 2), (N + 2, 1)])
def test_other_sizes_are_tried_only_where_sizes_are_equal(length, times, monkeypatch) -> None:
    forwards = []
    monkeypatch.setattr(
        Net, "forward", lambda self, x: forwards.append(x.shape) or self.made(self.first(x))
    )
    net = Net(Made(lambda x: x.relu()), 1)
    assert found_axis(net, torch.randn(N + 2, N, length), other_sizes=True) == 1
    shapes = [(N + 2, N, length), (N + 3, N, 2 * length)]
    assert list(dict.fromkeys(tuple(shape) for shape in forwards)) == shapes[:times]


class WithMask(nn.Module):
    """Takes tokens and, by name, a mask of their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.made = nn.Embedding(N, N), Made(rearranged)

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        return self.made(self.embedding(tokens) * mask[..., None]) * 2


def test_what_comes_beside_follows() -> None:
    net = WithMask()
    tokens, mask = torch.full((2, N), N - 1), torch.ones(2, N)
    recording = record(net, (tokens,), {"mask": mask})
    with pytest.raises(LayoutError, match=r"on an input of another size, .* \(3, 6, 12\)"):
        resolve(recording, parse("modules('made')").require(recording))
    (site,) = resolve(recording, parse("modules('embedding')").require(recording))
    assert site.layout.axis == 2
