"""Rules select sites; rules compose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import fx

from .._errors import NoSiteError
from ..recording import Recording, Scope
from ._spot import Spot, locate

Found = tuple[Scope, fx.Node]


class Rule(ABC):
    """Selects sites from a recording.

    Rules compose: ``a | b`` selects what either selects, each tensor once; ``a & b`` what both
    select; ``a - b`` what the first selects and the second does not.
    """

    @abstractmethod
    def find(self, recording: Recording) -> Iterable[Found]:
        """Return the selected tensors: pairs of a scope and a node of its graph."""

    @abstractmethod
    def why_none(self, recording: Recording) -> str:
        """Explain, for a model on which the rule selects nothing, why, and what would work."""

    def select(self, recording: Recording) -> list[Spot]:
        """Return the selected spots in the order in which they are computed, each tensor once."""
        return _unique(locate(recording, scope, node) for scope, node in self.find(recording))

    def explain(self, recording: Recording, path: str) -> str:
        """Say why a tensor of the module at ``path`` was, or was not, selected."""
        names = [spot.name for spot in self.select(recording) if spot.scope.path == path]
        if names:
            return f"selected: {', '.join(names)}."
        if not recording.calls(path):
            return "not selected: it was not called in the recorded forward pass."
        return f"not selected: no tensor of it is among the sites of {self}."

    def require(self, recording: Recording) -> list[Spot]:
        """Return the selected spots.

        **Raises:** `NoSiteError`, with the reason, if there are none.
        """
        if spots := self.select(recording):
            return spots
        raise NoSiteError(
            f"The rule {str(self)!r} selects nothing in {type(recording.model).__name__}: "
            f"{self.why_none(recording)} {recording.what_is_unseen or ''}".rstrip()
        )

    def __or__(self, other: Rule) -> Rule:
        """Select what either rule selects."""
        return _Either(self, other)

    def __and__(self, other: Rule) -> Rule:
        """Select what both rules select."""
        return _Both(self, other)

    def __sub__(self, other: Rule) -> Rule:
        """Select what this rule selects and the other does not."""
        return _Without(self, other)

    def __str__(self) -> str:
        """Return the rule as it is written: its class in small letters, its public attributes."""
        name = type(self).__name__.lower()
        given = [value for key, value in vars(self).items() if not key.startswith("_")]
        options = [getattr(value, "__name__", repr(value)) for value in given]
        return f"{name}({', '.join(options)})" if options else name

    def __repr__(self) -> str:
        """Return the rule as it is written in a string."""
        return str(self)


class Filter(Rule):
    """A rule that, joined to another by ``&`` or ``-``, keeps or drops what the other selects."""

    @abstractmethod
    def keeps(self, recording: Recording, spot: Spot) -> bool:
        """Whether a spot that another rule selected passes."""


class Selection(Rule):
    """A rule that is made of others, and selects some of their spots."""

    @abstractmethod
    def select(self, recording: Recording) -> list[Spot]:
        """Return the selected spots in the order in which they are computed, each tensor once."""

    def find(self, recording: Recording) -> Iterable[Found]:
        return [(spot.scope, spot.node) for spot in self.select(recording)]


class _Composed(Selection):
    sign: str
    tightness: int

    def __init__(self, left: Rule, right: Rule) -> None:
        self.left, self.right = left, right

    def explain(self, recording: Recording, path: str) -> str:
        parts = (f"{rule}: {rule.explain(recording, path)}" for rule in (self.left, self.right))
        return " ".join(parts)

    def why_none(self, recording: Recording) -> str:
        empty = [rule for rule in (self.left, self.right) if not rule.select(recording)]
        if not empty:
            return f"{self.left} and {self.right} each select sites, but none remains of both."
        return " ".join(f"{rule}: {rule.why_none(recording)}" for rule in empty)

    def __str__(self) -> str:
        left, right = (
            f"({rule})"
            if isinstance(rule, _Composed) and rule.tightness < self.tightness + side
            else str(rule)
            for side, rule in enumerate((self.left, self.right))
        )
        return f"{left} {self.sign} {right}"


class _Either(_Composed):
    sign, tightness = "|", 0

    def select(self, recording: Recording) -> list[Spot]:
        return _unique([*self.left.select(recording), *self.right.select(recording)])


class _Both(_Composed):
    sign, tightness = "&", 1

    def select(self, recording: Recording) -> list[Spot]:
        for rule, other in ((self.left, self.right), (self.right, self.left)):
            if isinstance(other, Filter):
                return [s for s in rule.select(recording) if other.keeps(recording, s)]
        kept = {spot.flat for spot in self.right.select(recording)}
        return [spot for spot in self.left.select(recording) if spot.flat in kept]


class _Without(_Composed):
    sign, tightness = "-", 2

    def select(self, recording: Recording) -> list[Spot]:
        if isinstance(self.right, Filter):
            keeps = self.right.keeps
            return [s for s in self.left.select(recording) if not keeps(recording, s)]
        dropped = {spot.flat for spot in self.right.select(recording)}
        return [spot for spot in self.left.select(recording) if spot.flat not in dropped]


def _unique(spots: Iterable[Spot]) -> list[Spot]:
    """Keep one spot a tensor, in order of computation."""
    first: dict[fx.Node, Spot] = {}
    for spot in spots:
        first.setdefault(spot.flat, spot)
    return sorted(first.values(), key=lambda spot: int(spot.node.meta["time"]))
