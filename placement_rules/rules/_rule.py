"""Rules select sites; rules compose; rules have names, by which strings can use them."""

from __future__ import annotations

import ast
import difflib
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import fx, nn

from .._errors import NoSiteError, PlacementError, RuleSyntaxError
from ..recording import SYNTAX_TREES, Recording, Scope
from ._site import Spot, locate

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


# In strings ----------------------------------------------------------------------------------

_SHOWN, _MOST = 200, 200  # letters of a rule in errors; signs in a rule, for Python's stack
_STRINGS = re.compile(r"'[^']*'|\"[^\"]*\"")
_PATH = re.compile(r"[\w*]+(\.[\w*]+)*")  # of a module
_SITE = re.compile(_PATH.pattern + r":\w+")
_SIGNS = re.compile(r"[^\w\s,]")
_Named = TypeVar("_Named", bound=Rule | Callable[..., Rule])
_NAMES: dict[str, Rule | Callable[..., Rule]] = {}
_JOINS: dict[type[ast.operator], Callable[[Rule, Rule], Rule]] = {
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.Sub: operator.sub,
}


def register(name: str, rule: _Named) -> _Named:
    """Give a rule a name, so that strings can use it, and return it.

    **Arguments:**

    - `name`: an identifier that no rule has yet.
    - `rule`: a rule, or what returns one, a class or a function (``"name(arguments)"`` in strings).

    **Raises:** `PlacementError` if the name is taken or no identifier.
    """
    if not name.isidentifier():
        raise PlacementError(f"{name!r} is not an identifier, so strings could not use it.")
    if name in _NAMES:
        raise PlacementError(f"There is a rule {name!r} already: {_NAMES[name]}.")
    if not isinstance(rule, Rule) and not callable(rule):
        raise PlacementError(f"{rule!r} is neither a rule nor a function that returns one.")
    _NAMES[name] = rule
    return rule


def parse(rule: Rule | str) -> Rule:
    """Return the rule that a string such as ``"blocks | downsample(stem=True)"`` describes.

    **Arguments:**

    - `rule`: a string, or a rule, which is returned as it is.

    **Raises:** `RuleSyntaxError` for anything else, naming the part that cannot be read.
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise RuleSyntaxError(
            f"A rule is a string or a rule object, not {type(rule).__name__}.{_instead_of(rule)}"
        )
    shown = rule if len(rule) <= _SHOWN else f"{rule[:_SHOWN]}…"
    if (count := len(_SIGNS.findall(_STRINGS.sub("", rule)))) > _MOST:
        raise RuleSyntaxError(
            f"{shown!r} has {count} signs, of which a rule may have {_MOST}. Many sites are named "
            "by one at(…), or by modules(…)."
        )
    try:
        with SYNTAX_TREES:
            tree = ast.parse(rule.strip(), mode="eval")
    except SyntaxError as error:
        hint = _named_by(rule.strip())
        raise RuleSyntaxError(f"{shown!r} is not a rule: {error.msg}.{hint}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a lone surrogate; "not not not …"
        raise RuleSyntaxError(f"{shown!r} is not a rule: {error}.") from error
    found = _evaluate(tree.body, shown)
    if not isinstance(found, Rule):
        raise RuleSyntaxError(f"{shown!r} describes no rule. {_known()}")
    return found


def _evaluate(node: ast.expr, text: str) -> Any:
    match node:
        case ast.BinOp():
            left, right = _evaluate(node.left, text), _evaluate(node.right, text)
            join = _JOINS.get(type(node.op))
            if join and isinstance(left, Rule) and isinstance(right, Rule):
                return join(left, right)
        case ast.Name():
            if node.id in _NAMES:
                return _NAMES[node.id]
            near = difflib.get_close_matches(node.id, _NAMES, 1)
            hint = f" Did you mean {near[0]!r}?" if near else _named_by(node.id)
            raise RuleSyntaxError(f"There is no rule {_part(node, text)}.{hint} {_known()}")
        case ast.Constant():
            return node.value
        case ast.UnaryOp(op=ast.USub()):
            value = _evaluate(node.operand, text)
            if isinstance(value, (int, float)):
                return -value
            raise RuleSyntaxError(
                f"{ast.unparse(node)!r} in {text!r}: a minus stands between two rules, as in "
                "blocks - stage(0)."
            )
        case ast.Call():
            return _call(node, text)
    raise RuleSyntaxError(
        f"{_part(node, text)} is not a rule.{_named_by(ast.unparse(node))} Rules are joined by |, "
        f"& and -. {_known()}"
    )


def _call(node: ast.Call, text: str) -> Any:
    function = _evaluate(node.func, text)
    if not callable(function):
        raise RuleSyntaxError(f"{ast.unparse(node.func)} takes no arguments, in {text!r}.")
    args = [_evaluate(arg, text) for arg in node.args]
    kwargs = {str(item.arg): _evaluate(item.value, text) for item in node.keywords}
    try:
        return function(*args, **kwargs)
    except RuleSyntaxError:
        raise
    except (TypeError, PlacementError) as error:
        why = str(error).removesuffix(".")
        raise RuleSyntaxError(f"{_part(node, text)}: {why}.") from error


def _part(node: ast.expr, text: str) -> str:
    """Return a part of a rule as an error names it: with the rule, unless it is all of it."""
    part = ast.unparse(node)
    part = part if len(part) <= _SHOWN else f"{part[:_SHOWN]}…"
    return repr(part) if part == text.strip() else f"{part!r} in {text!r}"


def _named_by(text: str) -> str:
    """Return a sentence on how a rule names the module or site a text may mean, or nothing."""
    if len(text) > _SHOWN:
        return ""
    if _SITE.fullmatch(text):
        return f" A site is named by at({text!r})."
    return f" A module is named by modules({text!r})." if _PATH.fullmatch(text) else ""


def _instead_of(rule: object) -> str:
    """Return what to write instead of an object that is often taken for a rule."""
    if isinstance(rule, (list, tuple, set, frozenset)):
        return ' Several are joined by |: "blocks | head".'
    if isinstance(rule, type):
        return f" rules.modules({rule.__name__}) selects the modules of a class."
    if isinstance(rule, nn.Module):
        return " Modules are named by their paths: \"modules('layer1.*')\"."
    return ""


def _known() -> str:
    return "The rules are: " + ", ".join(sorted(_NAMES)) + "."
