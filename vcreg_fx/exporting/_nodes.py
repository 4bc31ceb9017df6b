"""What an exported graph is made of besides a model's own nodes: those of sites, and checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import InsertionError
from ..site import TABLE, LiveSite, SiteTable
from ..surgery import node_functions


class Demean(nn.Module):
    """A demean node: the batch mean of a site's activation, or the activation less that mean.

    **Arguments:**

    - `site`: the live site, shared with the model that the graph was made from.
    - `running_mean`: with ``demean="activations"``, the running mean, shape (d,), shared too.
    """

    def __init__(self, site: LiveSite, running_mean: Tensor | None = None) -> None:
        super().__init__()
        self.site = site
        self.register_buffer("running_mean", running_mean)

    def forward(self, h: Tensor) -> Tensor | None:
        """Return the mean, shape (d,), None where no penalty is due; or the demeaned activation."""
        if isinstance(self.running_mean, Tensor):
            return node_functions.demean_activation(self.site, h, self.training, self.running_mean)
        return node_functions.demean(self.site, h, self.training)

    def extra_repr(self) -> str:
        return self.site.name


class VCReg(nn.Module):
    """A vcreg node: the identity in forward, with the penalty attached in training."""

    def __init__(self, site: LiveSite) -> None:
        super().__init__()
        self.site = site
        self.__dict__[TABLE] = SiteTable(site=site)  # where vcreg_fx.sites looks

    def forward(self, h: Tensor, mean: Tensor | None = None) -> Tensor:
        """Return `h`."""
        return node_functions.vcreg(self.site, h, mean, self.training)

    def extra_repr(self) -> str:
        return repr(self.site)


# What Python asks of a value, and of which values it can be told from an example.
QUESTIONS: dict[str, tuple[Any, Any]] = {
    "number": (lambda value: value, (int, float)),
    "length": (len, (tuple, list, dict, str, torch.Tensor)),
    "condition": (bool, (bool, int, float, str, tuple, list, dict, type(None))),
}


@fx.node.has_side_effect  # else dead code to torch.fx
def expect(value: Any, question: str, expected: Any, where: str) -> None:
    """Check, in a graph, what tracing took from the example call.

    **Arguments:**

    - `value`: the value that was asked.
    - `question`: what was asked of it: its ``"number"``, its ``"length"``, or whether it is true, a
      ``"condition"``.
    - `expected`: the answer in the example call.
    - `where`: the module that asked.

    **Raises:** `InsertionError` if the answer is another one in this call.
    """
    if isinstance(value, fx.Proxy):  # the graph is traced again
        args = (value, question, expected, where)
        value.tracer.create_proxy("call_function", expect, args, {})
    elif (answer := QUESTIONS[question][0](value)) != expected:
        raise InsertionError(
            f"The forward of {where} depends on a {question} that was {expected!r} in the call "
            f"that this graph was made from, and is {answer!r} now. Make another graph, with "
            "example_inputs of the shapes and types of this call."
        )


expect.__module__ = "vcreg_fx.exporting"  # where exported code imports it from
