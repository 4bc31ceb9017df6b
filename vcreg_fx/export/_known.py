"""What an example call tells of traced values, and the check of what was taken from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from placement_rules._torch import FakeCopyMode, FakeTensorMode

from .._errors import InsertionError
from ..surgery import is_covered, uninstall
from ._node_modules import Demean, VCReg
from ._randomness import keeping_randomness


class Known:
    """Works out the values of traced nodes on fake tensors, one after the other, where asked for.

    **Arguments:**

    - `model`: the model, in the mode that it is traced in; a fake copy of it is made.
    - `example`: an example value for each argument of the graph, by name.

    **Attributes:**

    - `running`: whether it is running a module now.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Any]) -> None:
        self.running = False
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(self._mode):
            self._model, self._example = copy.deepcopy((model, dict(example)))
        for module in list(self._model.modules()):
            if not is_covered(module):  # one that is does nothing without gradients, either
                uninstall(module)
        self._found: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node, root: nn.Module, own: Mapping[str, nn.Module]) -> Any:
        """Return a node's value in the example call.

        **Arguments:**

        - `root`: what is traced, which also holds the constants that tracing found.
        - `own`: modules of the graph that are none of the model: the nodes of its sites.
        """
        self.running = True
        try:
            with self._mode, torch.no_grad(), keeping_randomness():
                for earlier in node.graph.nodes:
                    if earlier not in self._found:
                        self._found[earlier] = self._run(earlier, root, own)
                    if earlier is node:
                        break
        finally:
            self.running = False
        return self._found[node]

    def _run(self, node: fx.Node, root: nn.Module, own: Mapping[str, nn.Module]) -> Any:
        target: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), lambda given: self._found[given])
        if node.op == "placeholder":
            return self._example[target]
        if node.op == "get_attr":
            path, _, name = target.rpartition(".")
            owner = self._model.get_submodule(path)
            return getattr(owner if hasattr(owner, name) else root.get_submodule(path), name)
        if target is expect:
            return None
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            if isinstance(own.get(target), (Demean, VCReg)):  # no matter, and its input
                return args[0]
            return self._model.get_submodule(target)(*args, **kwargs)
        return target(*args, **kwargs)


# What Python asks of a value, and of which values it can be told from an example.
QUESTIONS: dict[str, tuple[Any, Any]] = {
    "number": (lambda value: value, (int, float)),
    "length": (len, (tuple, list, dict, str, torch.Tensor)),
    "condition": (bool, (bool, int, float, str, tuple, list, dict, type(None))),
}


@fx.node.has_side_effect  # else dead code to torch.fx
def expect(value: Any, question: str, expected: Any, where: str) -> None:
    """Check, in a graph, what tracing took from the example call.

    **Arguments:**

    - `value`: the value that was asked.
    - `question`: what was asked of it: its ``"number"``, its ``"length"``, or whether it is true, a
      ``"condition"``.
    - `expected`: the answer in the example call.
    - `where`: the module that asked.

    **Raises:** `InsertionError` if the answer is another one in this call.
    """
    if isinstance(value, fx.Proxy):  # the graph is traced again
        args = (value, question, expected, where)
        value.tracer.create_proxy("call_function", expect, args, {})
    elif (answer := QUESTIONS[question][0](value)) != expected:
        raise InsertionError(
            f"The forward of {where} depends on a {question} that was {expected!r} in the call "
            f"that this graph was made from, and is {answer!r} now. Make another graph, with "
            "example_inputs of the shapes and types of this call."
        )


expect.__module__ = "vcreg_fx.export"  # where exported code imports it from
