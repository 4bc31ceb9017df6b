"""What demean and vcreg nodes become when a rewritten model is traced by torch.fx."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from ..site import TABLE, LiveSite


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
