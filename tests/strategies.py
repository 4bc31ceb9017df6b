"""Hypothesis strategies shared by the property tests: activations and coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from placement_rules import Layout

LAYOUTS = ("NC", "NLC", "NCL", "NCHW", "NHWC", "NCTHW", "NTHWC", "CN", "NTCHW", "HWNC")
MEMORY = ("contiguous", "channels_last", "permuted", "sliced")


@dataclass(frozen=True)
class Activation:
    """A drawn activation, and where its channels are."""

    h: Tensor
    layout: Layout

    def __repr__(self) -> str:
        return f"{self.layout} {tuple(self.h.shape)} strides {self.h.stride()} {self.h.dtype}"


@st.composite
def activations(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
    *,
    min_samples: int = 2,
    max_channels: int = 9,
    max_ratio: float = 10.0,
) -> Activation:
    """Draw an activation of any layout and memory format.

    Its features are correlated, of different sizes, and have means up to `max_ratio` times their
    standard deviation.
    """
    layout = Layout.parse(draw(st.sampled_from(LAYOUTS)))
    d = draw(st.integers(1, max_channels))
    sizes = [draw(st.integers(1, 5)) for _ in range(layout.ndim - 1)]
    while torch.Size(sizes).numel() < min_samples:
        sizes[sizes.index(min(sizes))] += 1
    shape = [*sizes[: layout.axis], d, *sizes[layout.axis :]]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = torch.Size(sizes).numel()
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing
    z = z * draw(st.sampled_from((0.03, 0.3, 1.0, 3.0)))
    std = z.std(dim=0).mean() if n > 1 else z.abs().mean()
    z = z + torch.randn(d, generator=generator, dtype=torch.float64) * std * draw(
        st.sampled_from((0.0, 1.0, max_ratio))
    )
    h = z.reshape(*sizes, d).movedim(-1, layout.axis).reshape(shape)
    h = h.to(draw(st.sampled_from(dtypes)))
    return Activation(in_memory(h, layout, draw(st.sampled_from(MEMORY))), layout)


def in_memory(h: Tensor, layout: Layout, memory: str) -> Tensor:
    """Return the same values with other strides."""
    if memory == "channels_last":
        return h.movedim(layout.axis, -1).contiguous().movedim(-1, layout.axis)
    if memory == "permuted":
        return h.transpose(0, -1).contiguous().transpose(0, -1)
    if memory == "sliced":
        wide = torch.cat([h, h], dim=-1)
        wide[..., 1::2], wide[..., ::2] = -1.0, h
        return wide[..., ::2]
    return h.contiguous()


coefficients = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from((0.0, 0.16, 0.64, 3.0)),
        "beta": st.sampled_from((0.0, 0.01, 0.08, 2.0)),
        "delta": st.sampled_from((None, 0.05, 1.0, 5.0)),
        "gamma": st.sampled_from((0.5, 1.0, 2.0)),
        "eps": st.sampled_from((1e-6, 1e-4, 1e-2)),
    }
)
