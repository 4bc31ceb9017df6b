"""Find residual adds: where a branch is added to what it branched off from."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from torch import fx

from .._node import is_activation, operation, value
from ..recording import Scope, get_leaf

_LOGIT_STEPS = {
    "add",
    "mul",
    "div",
    "truediv",
    "view",
    "reshape",
    "masked_fill",
    "float",
    "to",
    "sub",
}
_SOFTMAXES = {"softmax", "log_softmax"}
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}


class Ancestry:
    """Which nodes of a scope's graph each node depends on, as sets of bits."""

    def __init__(self, scope: Scope) -> None:
        self._bit: dict[fx.Node, int] = {}
        self._of: dict[fx.Node, int] = {}
        self.modules = self.inputs = self.products = 0
        given = {node for _, node in scope.inputs}
        for place, node in enumerate(scope.graph.nodes):
            bit = 1 << place
            self._bit[node] = bit
            self._of[node] = reduce(or_, (self._of[n] for n in node.all_input_nodes), bit)
            if node.op == "call_module":
                self.modules |= bit
            elif _is_product(node):
                self.products |= bit
            if node in given:
                self.inputs |= bit
        self.from_input = reduce(
            or_, (bit for node, bit in self._bit.items() if self._of[node] & self.inputs), 0
        )

    def of(self, node: fx.Node) -> int:
        """Return the node and everything it depends on."""
        return self._of[node]

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether ``node`` is ``source`` or depends on it."""
        return bool(self._of[node] & self._bit[source])

    def share_input(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether both depend on one node that itself derives from an input of the scope."""
        return bool(self.of(one) & self.of(other) & self.from_input)


def residual_adds(scope: Scope) -> list[fx.Node]:
    """Return the residual adds of a scope's own forward, in order.

    An add of two activations of equal shape that both derive from one activation, where at least
    one module call lies on exactly one side. The call of a helper that adds its own branch to
    another of its inputs (the output layers of BERT and VideoMAE) is such an add of its caller.
    """
    ancestry = Ancestry(scope)
    logits: set[fx.Node] | None = None
    found = []
    for node in scope.graph.nodes:
        if (pair := add_operands(node)) is not None:
            one, other = pair
            if ancestry.share_input(one, other) and _has_branch(ancestry, one, other):
                logits = _feeding_softmax(scope) if logits is None else logits
                if node in logits:
                    continue
                found.append(node)
        elif node.op == "call_module" and helper_add(node.meta["scope"]) is not None:
            branch, skip = _helper_operands(node)
            if branch and skip and ancestry.share_input(branch, skip):
                found.append(node)
    return found


def _has_branch(ancestry: Ancestry, one: fx.Node, other: fx.Node) -> bool:
    """Whether modules were called on one side, and the other is what they branched off from.

    A side without modules that multiplies activations is no such thing, but another branch: CoaT
    adds a position encoding to the values that its attention weighs.
    """
    for branch, skip in ((one, other), (other, one)):
        called = ancestry.of(branch) & ~ancestry.of(skip)
        kept = ancestry.of(skip) & ~ancestry.of(branch)
        if called & ancestry.modules and (kept & ancestry.modules or not kept & ancestry.products):
            return True
    return False


def helper_add(scope: Scope) -> fx.Node | None:
    """Return the add of a scope's branch to another of its inputs, if it does just that."""
    found = _helper(scope)
    return None if found is None else found[0]


def _is_product(node: fx.Node) -> bool:
    """Whether a node is a matrix product of activations, as of attention."""
    factors = [source for source in node.all_input_nodes if is_activation(source)]
    return (
        node.op == "call_function"
        and operation(node.target) in _PRODUCTS
        and sum(source.op != "get_attr" for source in factors) > 1
    )


def add_operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the operands of an add of two activations of equal shape, else None."""
    if node.op != "call_function" or operation(node.target) != "add":
        return None
    named = [node.kwargs[name] for name in ("input", "other") if name in node.kwargs]
    operands = [*node.args[:2], *named]
    if len(operands) != 2 or not all(is_activation(operand) for operand in operands):
        return None
    one, other = operands
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return None
    return (one, other) if value(one).shape == value(other).shape else None


def _feeding_softmax(scope: Scope) -> set[fx.Node]:
    """Return the sums that are attention logits (plus a position or mask term), and what they pass.

    They are no representations.
    """
    found: set[fx.Node] = set()
    waiting = [node for node in scope.graph.nodes if _operation(node) in _SOFTMAXES]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                if _operation(source) in _LOGIT_STEPS:
                    waiting.append(source)
    return found


def _operation(node: fx.Node) -> str:
    """Return a node's operation; for a module that does one function, that function's."""
    if node.op == "call_module":
        inner = [n for n in node.meta["scope"].graph.nodes if n.op.startswith("call")]
        return _operation(inner[0]) if len(inner) == 1 else ""
    return operation(node.target) if node.op == "call_function" else ""


def _helper(scope: Scope) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    if len(scope.inputs) < 2:
        return None
    ancestry = Ancestry(scope)
    given = [node for _, node in scope.inputs]
    for node in scope.graph.nodes:
        if (pair := add_operands(node)) is None:
            continue
        for branch, skip in (pair, pair[::-1]):
            sources = [n for n in given if ancestry.of(branch) & ancestry.of(n)]
            apart = skip in given and sources and skip not in sources
            if apart and ancestry.of(branch) & ancestry.modules:
                return node, sources[0], skip
    return None


def _helper_operands(call: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the caller's nodes for a helper's branch and skip inputs."""
    helper: Scope = call.meta["scope"]
    found = _helper(helper)
    if found is None:
        return None, None
    _, branch, skip = found
    paths = {node: path for path, node in helper.inputs}

    def given(node: fx.Node) -> Any:
        path = paths[node]
        argument = get_leaf(call.args if isinstance(path[0], int) else call.kwargs, path)
        return argument if isinstance(argument, fx.Node) else None

    return given(branch), given(skip)
