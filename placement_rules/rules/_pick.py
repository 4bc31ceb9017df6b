"""``every``, ``first``, ``last``: some of the sites that a rule selects."""

from __future__ import annotations

from typing import Literal

from .._errors import PlacementError
from ..recording import Recording
from ._parse import parse
from ._rule import Found, Rule
from ._spot import Spot


class Pick(Rule):
    """Selects some of what another rule selects, by their order."""

    def __init__(self, how: Literal["every", "first", "last"], rule: Rule | str, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise PlacementError(f"{how}({rule}, {k!r}): the number must be at least 1.")
        self.how, self.rule, self.k = how, parse(rule), k

    def find(self, recording: Recording) -> list[Found]:
        """Return the picked tensors."""
        return [(spot.scope, spot.node) for spot in self.select(recording)]

    def select(self, recording: Recording) -> list[Spot]:
        """Return the picked spots."""
        spots = self.rule.select(recording)
        if self.how == "first":
            return spots[: self.k]
        if self.how == "last":
            return spots[-self.k :]
        return spots[::-1][:: self.k][::-1]

    def why_none(self, recording: Recording) -> str:
        """Explain why the inner rule selects nothing."""
        return f"{self.rule}: {self.rule.why_none(recording)}"

    def __str__(self) -> str:
        """Return the rule as it is written in a string."""
        return f"{self.how}({self.rule}, {self.k})"


def every(rule: Rule | str, k: int) -> Rule:
    """Return the rule that selects every k-th site of another, ending at the last."""
    return Pick("every", rule, k)


def first(rule: Rule | str, k: int) -> Rule:
    """Return the rule that selects the first k sites of another."""
    return Pick("first", rule, k)


def last(rule: Rule | str, k: int) -> Rule:
    """Return the rule that selects the last k sites of another."""
    return Pick("last", rule, k)
