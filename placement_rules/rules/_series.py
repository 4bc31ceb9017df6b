"""``each``, ``leave_one_out``, ``prefixes``: from one rule, the rules of a placement study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..recording import Recording
from ._at import At
from ._parse import parse
from ._rule import Rule


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
        groups = _GROUPS[self.name](names)
        return [At(*group) for group in groups if group]

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
