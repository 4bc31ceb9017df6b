"""The functions that demean and vcreg nodes call in a rewritten forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from placement_rules import LayoutError, get_leaf, is_recording, is_same, leaves, replace_leaf
from placement_rules._torch import in_backward

from .._errors import InsertionError
from ..site import TABLE, LiveSite

_MOMENTUM = 0.1  # as in torch's batch norms


def demean(site: LiveSite, h: Tensor, training: bool) -> Tensor | None:
    """Return a vector near the batch mean, shape (d,), or None where no penalty is due."""
    if (tracer := tracer_of(h)) is not None:
        mean: Tensor = tracer.demean(site, h)
        return mean
    if isinstance(h, torch.fx.Proxy) and training:
        live, mode = site_and_mode(site, h)
        return h.tracer.create_proxy("call_function", demean, (live, h, mode), {})
    if not isinstance(h, Tensor):
        if h is not None and training:
            raise LayoutError(
                f"{site.name} was planned as one tensor and is a {type(h).__name__} now. Insert at "
                "another module, or with example_inputs= as you train on them."
            )
        return None
    return site.reference_mean(h) if site.active(h, training) else None


def demean_activation(site: LiveSite, h: Tensor, training: bool, running_mean: Tensor) -> Tensor:
    """Return ``h`` less its batch mean, or less the running mean in eval mode (Appendix A)."""
    if (tracer := tracer_of(h)) is not None:
        demeaned: Tensor = tracer.demean_activation(site, h, running_mean)
        return demeaned
    if isinstance(h, torch.fx.Proxy) and training:
        live, mode = site_and_mode(site, h)
        args = (live, h, mode, running_mean)
        return h.tracer.create_proxy("call_function", demean_activation, args, {})
    if not torch.compiler.is_compiling() and is_recording():
        return h  # rules look at the model as it was before
    if not training:
        if not isinstance(h, Tensor):  # it is traced
            shape = [1] * site.layout.ndim
            shape[site.layout.axis] = -1
            return h - running_mean.to(h.dtype).view(shape)
        return site.less(h, running_mean.to(h.dtype), site.absent(h))
    z, mean, count = site.demeaned(h)
    if not in_backward():  # once a step, also where checkpointing runs forward again
        mean = mean.to(running_mean.dtype)
        if count is not None:
            mean = torch.where(count > 0, mean, running_mean)
        running_mean.lerp_(mean, _MOMENTUM)
    return z


def vcreg(site: LiveSite, h: Tensor, mean: Tensor | None, training: bool) -> Tensor:
    """Return ``h``, with VCReg attached in training."""
    if (tracer := tracer_of(h)) is not None:
        marked: Tensor = tracer.vcreg(site, h, mean)
        return marked
    if isinstance(h, torch.fx.Proxy) and training:
        live, mode = site_and_mode(site, h)
        return h.tracer.create_proxy("call_function", vcreg, (live, h, mean, mode), {})
    if not isinstance(h, Tensor) or not site.active(h, training):
        return h
    return site.regularize(h, mean)


def get_tensor(value: Any, path: tuple[int | str, ...]) -> Any:
    """Return the tensor at ``path`` in a module's structured output; None if it has none now."""
    if isinstance(value, torch.fx.Proxy) and path:
        return value.tracer.create_proxy("call_function", get_tensor, (value, path), {})
    try:
        return get_leaf(value, path)
    except (KeyError, IndexError, AttributeError):
        return None


def put_tensor(value: Any, path: tuple[int | str, ...], tensor: Any) -> Any:
    """Return the structured output with the tensor at ``path`` replaced, wherever it occurs.

    It is changed in place where it can be: a dict that a module received, changed and returned is
    read by its caller as the object it passed.
    """
    if tensor is None:
        return value
    if isinstance(value, torch.fx.Proxy) and path:
        return value.tracer.create_proxy("call_function", put_tensor, (value, path, tensor), {})
    original = get_tensor(value, path)
    places = [place for place, leaf in leaves(value) if leaf is original]
    for place in places or [path]:
        value = replace_leaf(value, place, tensor, in_place=True)
    return value


def get_argument(args: Any, kwargs: Any, names: tuple[str, ...], path: Any) -> Any:
    """Return the tensor at ``path`` in a call's arguments; None if this call does not have it."""
    return get_tensor(*_place(args, kwargs, names, path))


def put_argument(args: Any, kwargs: Any, names: tuple[str, ...], path: Any, tensor: Any) -> Any:
    """Return the call's ``(args, kwargs)`` with the tensor at ``path`` replaced."""
    _, place = _place(args, kwargs, names, path)
    if tensor is None:
        return args, kwargs
    if isinstance(place[0], int):
        return replace_leaf(tuple(args), place, tensor), kwargs
    return args, replace_leaf(dict(kwargs), place, tensor)


def check_arguments(
    given: Any, passed: Any, names: tuple[str, ...], marked: Sequence[Any], output: Any
) -> Any:
    """Return a call's output, if the call left the arguments that were copied for it as they were.

    **Arguments:**

    - `given`, `passed`: its ``(args, kwargs)`` without the sites in them, and with them.
    - `marked`: of each site, its name, its path, and the tensor that was put there.

    **Raises:** `InsertionError` if it wrote to a copy, which its caller would not see.
    """
    if torch.compiler.is_compiling() or isinstance(output, torch.fx.Proxy):
        return output
    if is_same((*given,), (*passed,)):  # nothing was copied
        return output
    expected = given
    for _, path, tensor in marked:
        args, kwargs = expected
        expected = put_argument(args, kwargs, names, path, tensor)
    if not is_same((*expected,), (*passed,)):
        sites = ", ".join(name for name, _, _ in marked)
        raise InsertionError(
            f"{sites}: the module writes to an argument that VCReg replaced by a copy, as a "
            "caller's own objects are not written to, so that its caller would not see the change. "
            "Use a rule that leaves this module's input out."
        )
    return output


def _place(args: Any, kwargs: Any, names: tuple[str, ...], path: Any) -> tuple[Any, Any]:
    """An argument recorded by position may be passed by name, and the other way round."""
    first, *rest = path
    if isinstance(first, int) and first >= len(args) and first < len(names):
        first = names[first]
    elif isinstance(first, str) and first not in kwargs and first in names:
        first = names.index(first)
    return (args if isinstance(first, int) else kwargs), (first, *rest)


def tracer_of(*values: Any) -> Any:
    """Return the tracer that has demean and vcreg nodes of its own, if one traces the values."""
    for value in values:
        if isinstance(value, fx.Proxy) and hasattr(value.tracer, "demean_activation"):
            return value.tracer
    return None


def site_and_mode(site: LiveSite, h: fx.Proxy) -> tuple[fx.Proxy, fx.Proxy]:
    """Return nodes that read the live site and its module's mode, for any other tracer.

    They are read as the rewritten forward reads them, so that what is traced in train mode trains
    with VCReg, and follows ``train()`` and ``eval()`` there.

    **Raises:** `TypeError` if the site's module is not part of what is traced.
    """
    tracer = h.tracer
    root = getattr(tracer, "root", None)
    for path, module in root.named_modules() if isinstance(root, nn.Module) else ():
        table = module.__dict__.get(TABLE)
        for key, found in ({} if table is None else vars(table)).items():
            if found is site:
                prefix = f"{path}." if path else ""
                live = tracer.create_proxy("get_attr", f"{prefix}{TABLE}.{key}", (), {})
                return live, tracer.create_proxy("get_attr", f"{prefix}training", (), {})
    raise TypeError(
        f"Symbolic tracing in train mode would lose VCReg at {site.name}, whose module is not part "
        "of what is traced. Trace the model itself, or trace in eval mode, where VCReg does "
        "nothing; vcreg_fx.to_graph_module(model) keeps VCReg as nodes."
    )
