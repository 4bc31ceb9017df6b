"""In which types the statistics and the matrix products of the fast gradient are computed."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from placement_rules._torch import mark_constant

FULL = (torch.float32, torch.float64)
_HAS_OUT_DTYPE = "out_dtype" in (torch.mm.__doc__ or "")  # not in torch's older versions


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which statistics are computed: at least float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def has_autocast(device: str) -> bool:
    """Whether a type of device has autocast, as some (meta) have not."""
    return torch.amp.is_autocast_available(device)


mark_constant(has_autocast)  # older compilers than that of torch 2.9 cannot ask for it


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return has_autocast(device) and torch.is_autocast_enabled(device)


def product_dtype(h: Tensor) -> torch.dtype:
    """Return the type of the factors of the matrix products; sums are at least float32.

    It is the activation's, or autocast's where the forward pass runs under it, so that the products
    run on the units that the network's own run on. Float16 products on a CPU, which has no such
    unit, are in float32.
    """
    device = h.device.type
    dtype = h.dtype
    if autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float16 and device == "cpu":
        return torch.float32
    return dtype


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product ``a b`` of two factors of one type, in at least float32."""
    if a.dtype in FULL:
        return torch.mm(a, b)
    if a.is_cuda:
        if _HAS_OUT_DTYPE:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.mm(a.to(torch.float32), b.to(torch.float32))
    return torch.mm(a, b).to(torch.float32)


def autocast_off(h: Tensor) -> contextlib.AbstractContextManager[object]:
    """Turn autocast off for the device of a tensor, if it has any."""
    device = h.device.type
    if not has_autocast(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
