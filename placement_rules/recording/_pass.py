"""One forward pass under watch: a function mode sees every call, hooks see every module."""

from __future__ import annotations

import types
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from .._torch import forward_hooks_of, function_modes, version_of, without_functions
from ._fast import Results
from ._tree import Path, leaves
from ._writes import Writes

_LIBRARIES = {"torch", "torchvision", "timm", "transformers"}


def is_recording() -> bool:
    """Whether this thread runs a forward pass under watch."""
    return any(isinstance(mode, Pass) for mode in function_modes())


class FunctionCall(NamedTuple):
    """The call of a function that made tensors, or wrote to some."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    made: list[tuple[Path, Tensor]]
    written: list[Tensor]


class ModuleCall(NamedTuple):
    """The call of a module, whose copy is running."""

    path: str
    module: nn.Module
    running: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[tuple[Path, Tensor]]:
        """The tensors among the arguments, and where they are."""
        return [*leaves(self.args), *leaves(self.kwargs)]


class Pass(TorchFunctionMode):
    """Watches a forward pass of ``copy``, a disposable copy of ``model``, while it is entered.

    ``results`` are those of earlier passes of it, if there were any.
    """

    def __init__(self, model: nn.Module, copy: nn.Module, results: Results) -> None:
        super().__init__()
        self.copy = copy
        self.writes = Writes()
        self._results = results
        self._time = 0
        self._stack: list[Any] = []  # the module calls that run, each with its path and module
        self._kept: list[Any] = []  # keeps every tensor alive, so that no id is used twice
        self._hooks: list[Any] = []
        originals = dict(model.named_modules())
        for path, module in copy.named_modules():
            _drop_function_hooks(module)
            self._watch(module, path, originals[path])

    def end(self) -> None:
        """Let go of the copied model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        del self.copy

    @abstractmethod
    def enter(self, call: ModuleCall) -> None:
        """Note that the call of a module begins."""

    @abstractmethod
    def leave(self, module: nn.Module, output: Any) -> Any:
        """Note that the call of a module ends; return what it is to return."""

    @abstractmethod
    def called(self, call: FunctionCall) -> None:
        """Note the call of a function."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and note it if it makes or changes a tensor."""
        kwargs = kwargs or {}
        arguments = _tensors((args, kwargs))
        where = self._stack[-1].path if self._stack else ""
        versions = self.writes.look(arguments, where, self._tick)
        output = self._results.call(func, args, kwargs)
        if not self._stack:
            return output
        written = [
            t for t, before in zip(arguments, versions, strict=True) if version_of(t) != before
        ]
        if not written and kwargs.get("inplace") is True:  # dropout writes in train mode only
            written = arguments[:1]
        made = list(leaves(output))
        self.writes.saw((*written, *(tensor for _, tensor in made)))
        if made or written:
            self.called(FunctionCall(func, args, kwargs, output, made, written))
        return output

    def _watch(self, module: nn.Module, path: str, original: nn.Module) -> None:
        # Hooks run under the mode: without this it would see every look that they take at a tensor.
        def enter(running: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with without_functions():
                call = ModuleCall(path, original, running, args, kwargs)
                where = self._stack[-1].path if self._stack else ""
                self.writes.look([tensor for _, tensor in call.tensors], where, self._tick)
                self.enter(call)

        def leave(_: nn.Module, __: Any, output: Any) -> Any:
            with without_functions():
                while self._stack[-1].module is not original:  # ended in a caught exception
                    self._pop()
                return self.leave(original, output)

        self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(leave))

    def _pop(self) -> None:
        self._stack.pop()

    def _tick(self) -> int:
        self._time += 1
        return self._time


def _tensors(arguments: Any) -> list[Tensor]:
    """Return the tensors in the arguments of a function."""
    found: list[Tensor] = []

    def note(item: Any) -> None:
        if isinstance(item, Tensor):
            found.append(item)

    map_aggregate(arguments, note)
    return found


def _drop_function_hooks(module: nn.Module) -> None:
    """Remove the plain-function hooks that a user gave a copied module.

    Functions are not copied with the module: a user's hook that stores activations would be left
    with data-less ones. Hooks that are methods or objects were copied, and stay, and so do those
    of the libraries, which may be part of the forward (transformers collects outputs by them).
    """
    for hooks in forward_hooks_of(module):
        for key, hook in list(hooks.items()):
            library = str(getattr(hook, "__module__", "")).partition(".")[0]
            if isinstance(hook, types.FunctionType) and library not in _LIBRARIES:
                del hooks[key]
