"""Parts of what a rule selects: some of its sites, or several rules for a placement study."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from .._errors import PlacementError
from ..recording import Recording
from ._named import At
from ._rule import Rule, Selection, parse, register
from ._site import Spot


class _Pick(Selection):
    """Selects some of what another rule selects, by their order."""

    def __init__(self, rule: Rule | str, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            how = type(self).__name__.lower()
            raise PlacementError(f"{how}({rule}, {k!r}): the number must be at least 1.")
        self.rule, self.k = parse(rule), k

    @abstractmethod
    def pick(self, spots: list[Spot]) -> list[Spot]:
        """Return some of the spots."""

    def select(self, recording: Recording) -> list[Spot]:
        return self.pick(self.rule.select(recording))

    def why_none(self, recording: Recording) -> str:
        return f"{self.rule}: {self.rule.why_none(recording)}"


class Every(_Pick):
    """Selects every k-th site of another rule, ending at the last."""

    def pick(self, spots: list[Spot]) -> list[Spot]:
        return spots[::-1][:: self.k][::-1]


class First(_Pick):
    """Selects the first k sites of another rule."""

    def pick(self, spots: list[Spot]) -> list[Spot]:
        return spots[: self.k]


class Last(_Pick):
    """Selects the last k sites of another rule."""

    def pick(self, spots: list[Spot]) -> list[Spot]:
        return spots[-self.k :]


every = register("every", Every)
"""``every(rule, k)``: every k-th site of a rule, ending at the last."""
first = register("first", First)
"""``first(rule, k)``: the first k sites of a rule."""
last = register("last", Last)
"""``last(rule, k)``: the last k sites of a rule."""


@dataclass(frozen=True)
class Series:
    """Makes several rules of one, once the model is known.

    **Attributes:**

    - `name`: ``"each"``, ``"leave_one_out"`` or ``"prefixes"``.
    - `rule`: the rule whose sites are varied.
    """

    name: str
    rule: Rule

    def rules(self, recording: Recording) -> list[Rule]:
        """Return the rules for a recorded model, each of them naming its sites.

        **Raises:** `NoSiteError` if the rule selects nothing.
        """
        names = [spot.name for spot in self.rule.require(recording)]
        return [At(*group) for group in _GROUPS[self.name](names) if group]

    def __str__(self) -> str:
        """Return the generator as it is written in Python."""
        return f"{self.name}({str(self.rule)!r})"


def each(rule: Rule | str) -> Series:
    """Return the rules that select each site of ``rule`` alone."""
    return Series("each", parse(rule))


def leave_one_out(rule: Rule | str) -> Series:
    """Return the rules that select all sites of ``rule`` but one."""
    return Series("leave_one_out", parse(rule))


def prefixes(rule: Rule | str) -> Series:
    """Return the rules that select the first site of ``rule``, the first two, and so on."""
    return Series("prefixes", parse(rule))


_GROUPS: dict[str, Callable[[list[str]], list[list[str]]]] = {
    "each": lambda names: [[name] for name in names],
    "leave_one_out": lambda names: [[n for n in names if n != name] for name in names],
    "prefixes": lambda names: [names[: end + 1] for end in range(len(names))],
}
