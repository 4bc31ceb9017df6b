"""In-place writes in a traced graph, as edges."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

_OPERATORS = {
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and name[1:] in
    {"add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and", "or", "xor"}
}  # fmt: skip


def chain_writes(graph: fx.Graph) -> None:
    """Let whatever follows an in-place write use its result instead of the tensor written to.

    They are the same tensor. But `torch.fx` does not know that, and takes a write whose result
    nobody uses for dead code: ``mask.div_(keep)`` in timm's drop path.
    """
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        if _writes(node) and node.args and isinstance(node.args[0], fx.Node):
            written: fx.Node = node.args[0]
            later: set[Any] = set(nodes[index + 1 :])
            for user in [user for user in written.users if user in later]:
                user.replace_input_with(written, node)


def _writes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and node.target in _OPERATORS
