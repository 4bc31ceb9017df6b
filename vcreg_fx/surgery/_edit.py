"""What is to be done to a module's forward for one of its sites."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx

from placement_rules import Recording, Scope, Site

from ..site import key_of
from ._wrapping import Span


@dataclass(frozen=True)
class Place:
    """Where in the source of a module's class the tensor of a site is computed.

    **Attributes:**

    - `cls`, `method`: the class that defines the method, and the method's name.
    - `span`: the expression.
    - `execution`, `executions`: which of its executions in one call of the method makes the tensor,
      and how many there were.
    - `digest`: of the method's source.
    """

    cls: type
    method: str
    span: Span
    execution: int
    executions: int
    digest: str


@dataclass(frozen=True)
class Edit:
    """One site of a module, as its forward sees it; equal for modules that are alike.

    **Attributes:**

    - `name`: the site's name.
    - `position`, `leaf`: where in the module it is.
    - `place`: for a site in the middle of the forward, where in the source it is.
    - `demeans`: whether the activation itself is demeaned.
    - `at`: the recorded call and node, with which the module's graph is shown.
    """

    name: str = field(compare=False)
    position: str
    leaf: tuple[int | str, ...]
    place: Place | None
    demeans: bool = False
    at: tuple[Scope, fx.Node] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, site: Site, place: Place | None) -> Edit:
        """Return the edit for a planned site."""
        at = (site.scope, site.node)
        return cls(site.name, site.position, site.leaf, place, at=at)

    def detached(self) -> Edit:
        """Return the edit without the recording, as it is kept with the module."""
        return replace(self, at=None)

    def found_in(self, recording: Recording) -> Edit:
        """Return a kept edit with its node in a new recording of the model, for the shown graph."""
        for scope in recording.calls(self.name.partition(":")[0]):
            for node in scope.graph.nodes:
                if node.name == self.position:
                    return replace(self, at=(scope, node))
        return self

    @property
    def key(self) -> str:
        """The site's name among those of its module, as an identifier."""
        return key_of(self.name)

    @property
    def buffer(self) -> str | None:
        """The name of the running mean that ``demean="activations"`` adds to the module."""
        return f"vcreg_{self.key}_running_mean" if self.demeans else None
