"""Unforeseen writes to a site's tensor: the error of autograd, with the name of the site."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ..gradient import SITE
from ..site import TABLE

_VIEWS = 4  # how many views of a site's tensor are followed


def named_error(model: nn.Module, error: RuntimeError) -> RuntimeError | None:
    """Return what to raise for autograd's refusal of a write to a site's tensor; None for others.

    Autograd refuses since a site that returns no copy returns a view.
    """
    if "custom Function" not in str(error) or "inplace" not in str(error):
        return None
    found = _site_in(error.__traceback__)
    if found is None:
        tables = [vars(m.__dict__[TABLE]) for m in model.modules() if TABLE in m.__dict__]
        free = [site.name for table in tables for site in table.values() if not site.clones]
        found = f"{SITE} {' or '.join(free)}"
    return RuntimeError(
        f"{found}: the model writes to its tensor in place, which the recording has not shown, so "
        "that the site returned no copy. Write y = x * m instead of x.mul_(m), or to a clone of "
        "it; or insert with example_inputs= with which it is written to, or use a rule that "
        f"leaves this module out. ({error})"
    )


def _site_in(traceback: TracebackType | None) -> str | None:
    """Return the title of the site whose tensor one of the running functions holds, if any."""
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        for value in list(frame.f_locals.values()):
            if isinstance(value, Tensor) and (title := _title(value)) is not None:
                return title
    return None


def _title(tensor: Tensor) -> str | None:
    try:
        node: Any = tensor.grad_fn
    except RuntimeError:  # a view whose base was written to
        return None
    for _ in range(_VIEWS):
        if node is None or node.name().startswith(SITE):
            return None if node is None else str(node.name())
        above = [function for function, _ in node.next_functions if function is not None]
        node = above[0] if len(above) == 1 else None
    return None
