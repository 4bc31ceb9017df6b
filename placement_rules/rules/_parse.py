"""Read a rule from a string, with Python's precedence."""

from __future__ import annotations

import ast
from typing import Any

from .._errors import PlacementError, RuleSyntaxError
from ..recording import SYNTAX_TREES
from ._names import NAMES
from ._rule import Rule


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
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, text), _evaluate(node.right, text)
        if isinstance(left, Rule) and isinstance(right, Rule):
            if isinstance(node.op, ast.BitOr):
                return left | right
            if isinstance(node.op, ast.BitAnd):
                return left & right
            if isinstance(node.op, ast.Sub):
                return left - right
    elif isinstance(node, ast.Name):
        if node.id in NAMES:
            return NAMES[node.id]
        raise RuleSyntaxError(f"There is no rule {node.id!r} in {text!r}. {_known()}")
    elif isinstance(node, ast.Constant):
        return node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, text)
    elif isinstance(node, ast.Call):
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
    return "The rules are: " + ", ".join(sorted(NAMES)) + "."
