"""Proxies that answer Python's questions about shapes and types, where their tracer knows."""

from __future__ import annotations

import operator

from torch import fx
from torch.fx.proxy import Attribute


class DecidingProxy(fx.Proxy):
    """A traced value that can be a number or have a length; its tracer's ``decide`` says which."""

    def __getattr__(self, name: str) -> Attribute:
        return DecidingAttribute(self, name)

    def __int__(self) -> int:
        return int(self.tracer.decide(self, "number"))  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self, "number"))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.decide(self, "number"))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return int(self.tracer.decide(self, "length"))  # type: ignore[attr-defined]


class DecidingAttribute(DecidingProxy, Attribute):
    """An attribute of one, such as a tensor's shape."""
