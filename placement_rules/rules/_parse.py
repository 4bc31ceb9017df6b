"""Rules in strings: their names, and how they are read, with Python's precedence."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, TypeVar

from .._errors import PlacementError, RuleSyntaxError
from ..recording import SYNTAX_TREES
from ._rule import Rule

_Named = TypeVar("_Named", bound=Rule | Callable[..., Rule])
_NAMES: dict[str, Rule | Callable[..., Rule]] = {}
_SIGNS: dict[type[ast.operator], Callable[[Rule, Rule], Rule]] = {
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
        raise RuleSyntaxError(f"A rule is a string or a rule object, not {type(rule).__name__}.")
    try:
        with SYNTAX_TREES:
            tree = ast.parse(rule.strip(), mode="eval")
    except SyntaxError as error:
        raise RuleSyntaxError(f"{rule!r} is not a rule: {error.msg}.") from error
    found = _evaluate(tree.body, rule)
    if not isinstance(found, Rule):
        raise RuleSyntaxError(f"{rule!r} describes no rule. {_known()}")
    return found


def _evaluate(node: ast.expr, text: str) -> Any:
    match node:
        case ast.BinOp():
            left, right = _evaluate(node.left, text), _evaluate(node.right, text)
            join = _SIGNS.get(type(node.op))
            if join and isinstance(left, Rule) and isinstance(right, Rule):
                return join(left, right)
        case ast.Name():
            if node.id in _NAMES:
                return _NAMES[node.id]
            raise RuleSyntaxError(f"There is no rule {node.id!r} in {text!r}. {_known()}")
        case ast.Constant():
            return node.value
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand, text)
        case ast.Call():
            return _call(node, text)
    raise RuleSyntaxError(
        f"{ast.unparse(node)!r} in {text!r} is not a rule. Rules are joined by |, & and -. "
        f"{_known()}"
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
        raise RuleSyntaxError(f"{ast.unparse(node)!r} in {text!r}: {error}.") from error


def _known() -> str:
    return "The rules are: " + ", ".join(sorted(_NAMES)) + "."
