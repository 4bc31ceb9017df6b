"""Find merges: where branches that left one activation are added, or concatenated, again."""

from __future__ import annotations

from functools import reduce
from operator import and_, or_

from torch import fx

from .._node import called, does, is_activation, reached, value
from ..recording import Scope, get_leaf

CONCATENATIONS = {"cat", "concat", "concatenate"}
_SOFTMAXES = {"softmax", "log_softmax"}
_LOGIT_STEPS = {  # between the product of queries and keys and its softmax
    "add", "mul", "div", "truediv", "view", "reshape", "masked_fill", "float", "to", "sub",
}  # fmt: skip
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}


class Ancestry:
    """Which nodes of a scope's graph each node depends on, as sets of bits."""

    def __init__(self, scope: Scope) -> None:
        self._bit: dict[fx.Node, int] = {}
        self._of: dict[fx.Node, int] = {}
        self.modules = self.products = self.from_input = inputs = 0
        given = {node for _, node in scope.inputs}
        for place, node in enumerate(scope.graph.nodes):
            bit = self._bit[node] = 1 << place
            above = self._of[node] = reduce(or_, map(self.of, node.all_input_nodes), bit)
            if node.op == "call_module":
                self.modules |= bit
            elif _is_product(node):
                self.products |= bit
            if node in given:
                inputs |= bit
            if above & inputs:
                self.from_input |= bit

    def of(self, node: fx.Node) -> int:
        """Return the node and everything it depends on."""
        return self._of[node]

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether ``node`` is ``source`` or depends on it."""
        return bool(self._of[node] & self._bit[source])

    def shared(self, *nodes: fx.Node) -> int:
        """Return what all of some nodes depend on, and that derives from the scope's inputs."""
        return reduce(and_, map(self.of, nodes), self.from_input)


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
            if ancestry.shared(*pair) and _has_branch(ancestry, *pair):
                logits = _feeding_softmax(scope) if logits is None else logits
                if node not in logits:
                    found.append(node)
        elif node.op == "call_module" and (helper := _helper(node.meta["scope"])) is not None:
            branch, skip = (_given(node, argument) for argument in helper[1:])
            if branch and skip and ancestry.shared(branch, skip):
                found.append(node)
    return found


def helper_add(scope: Scope) -> fx.Node | None:
    """Return the add of a scope's branch to another of its inputs, if it does just that."""
    found = _helper(scope)
    return None if found is None else found[0]


def add_operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the operands of an add of two activations of equal shape, else None."""
    if called(node) != "add":
        return None
    named = [node.kwargs[name] for name in ("input", "other") if name in node.kwargs]
    operands = [*node.args[:2], *named]
    activations = [operand for operand in operands if is_activation(operand)]
    if not len(operands) == len(activations) == 2:
        return None
    one, other = activations
    return (one, other) if value(one).shape == value(other).shape else None


def concatenations(scope: Scope) -> list[fx.Node]:
    """Return the nodes of a scope's own forward that concatenate branches of one activation.

    At least one module call lies on some of the branches and not on others.
    """
    ancestry = Ancestry(scope)
    found = []
    for node in scope.graph.nodes:
        if called(node) in CONCATENATIONS:
            parts = [part for part in node.all_input_nodes if is_activation(part)]
            on_all = reduce(and_, map(ancestry.of, parts), -1)
            on_some = reduce(or_, map(ancestry.of, parts), 0) & ~on_all
            joined = ancestry.shared(*parts) or _takes_branches_of_one(scope)
            if joined and on_some & ancestry.modules:
                found.append(node)
    return found


def _takes_branches_of_one(scope: Scope) -> bool:
    """Whether the scope is a helper whose inputs are branches of one activation of its caller."""
    if scope.parent is None or scope.node is None:
        return False
    given = [part for part in scope.node.all_input_nodes if is_activation(part)]
    return len(given) > 1 and bool(Ancestry(scope.parent).shared(*given))


def _has_branch(ancestry: Ancestry, one: fx.Node, other: fx.Node) -> bool:
    """Whether modules were called on one side, and the other is what they branched off from.

    A side without modules that multiplies activations is no such thing, but another branch: CoaT
    adds a position encoding to the values that its attention weighs.
    """
    for branch, skip in ((one, other), (other, one)):
        mine = ancestry.of(branch) & ~ancestry.of(skip)
        theirs = ancestry.of(skip) & ~ancestry.of(branch)
        multiplies = theirs & ancestry.products and not theirs & ancestry.modules
        if mine & ancestry.modules and not multiplies:
            return True
    return False


def _is_product(node: fx.Node) -> bool:
    """Whether a node is a matrix product of activations, as of attention."""
    factors = [n for n in node.all_input_nodes if is_activation(n) and n.op != "get_attr"]
    return called(node) in _PRODUCTS and len(factors) > 1


def _feeding_softmax(scope: Scope) -> set[fx.Node]:
    """Return the sums that are attention logits (plus a position or mask term), and what they pass.

    They are no representations.
    """
    softmaxes = (node for node in scope.graph.nodes if does(node) in _SOFTMAXES)
    return reached(
        (source for node in softmaxes for source in node.all_input_nodes),
        lambda node: node.all_input_nodes if does(node) in _LOGIT_STEPS else (),
    )


def _helper(scope: Scope) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """Return a helper's add, and which of its inputs are the branch's source and the skip."""
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


def _given(call: fx.Node, argument: fx.Node) -> fx.Node | None:
    """Return the caller's node for an input of a call of a module."""
    path = next(path for path, node in call.meta["scope"].inputs if node is argument)
    found = get_leaf(call.args if isinstance(path[0], int) else call.kwargs, path)
    return found if isinstance(found, fx.Node) else None
