"""Watch forward passes: a function mode sees every call, hooks see every module.

What is written to in place is noticed by the versions of tensors, and found again by their memory.
"""

from __future__ import annotations

import types
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from .._node import operation
from .._torch import forward_hooks_of, function_modes, storage_of, version_of, without_functions
from ._fast import Results
from ._tree import Path, leaves

# In-place writes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """An in-place write: when it happened, which storage it changed, where."""

    time: int
    storage: int
    name: str


class Writes:
    """The in-place writes of one forward pass, added in the order of their times."""

    def __init__(self) -> None:
        self._of: dict[int, list[Write]] = {}  # by storage
        self._versions: dict[int, int] = {}  # of each storage, at its last sight

    def add(self, write: Write) -> None:
        """Note a write."""
        self._of.setdefault(write.storage, []).append(write)

    def after(self, storage: int, time: int) -> Write | None:
        """Return the first write to a storage after a time, if any."""
        writes = self._of.get(storage, [])
        place = bisect_right(writes, time, key=lambda write: write.time)
        return writes[place] if place < len(writes) else None

    def within(self, storage: int, start: int, end: int) -> bool:
        """Whether a storage was written to from one time to another."""
        write = self.after(storage, start - 1)
        return write is not None and write.time <= end

    def look(self, tensors: Iterable[Tensor], where: str, clock: Callable[[], int]) -> list[int]:
        """Notice which tensors were written to since they were last seen; return their versions.

        **Arguments:**

        - `tensors`: the arguments of a call.
        - `where`: what runs now, and may have written by calls that cannot be seen.
        - `clock`: gives the time of a write.
        """
        versions = []
        for tensor in tensors:
            storage, version = storage_of(tensor), version_of(tensor)
            if version > self._versions.get(storage, version):
                self.add(Write(clock(), storage, f"a call in {where}"))
            self._versions[storage] = version
            versions.append(version)
        return versions

    def saw(self, tensors: Iterable[Tensor]) -> None:
        """Note that tensors are now as a call that was seen left them."""
        for tensor in tensors:
            self._versions[storage_of(tensor)] = version_of(tensor)


# Passes --------------------------------------------------------------------------------------

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


# In train mode -------------------------------------------------------------------------------

Key = tuple[str, int, Path]  # what was called in a scope, which time, where in its result


@dataclass(eq=False)
class _Seen:
    """What was seen in a module call."""

    path: str
    module: nn.Module
    seen: dict[Key, tuple[int, int]] = field(default_factory=dict)  # the storage, and when
    counts: Counter[str] = field(default_factory=Counter)

    def next_of(self, name: str) -> int:
        self.counts[name] += 1
        return self.counts[name] - 1


class TrainingPass(Pass):
    """Notes the memory of every tensor of a pass, and what is written to it in training only.

    Its branches may be others than those of eval mode, drawn at random even, so that rules do not
    look at it, and no graph is made of it.
    """

    def __init__(self, model: nn.Module, copy: nn.Module, results: Results) -> None:
        super().__init__(model, copy.train(), results)
        self._calls: dict[tuple[str, int], _Seen] = {}
        self._times: Counter[str] = Counter()

    def written(self, path: str, call: int, key: Key) -> Write | None:
        """Return the first write to a tensor of a module call after it was there, if any."""
        found = self._calls.get((path, call))
        place = None if found is None else found.seen.get(key)
        return None if place is None else self.writes.after(*place)

    def end(self) -> None:
        super().end()
        self._kept.clear()

    def enter(self, call: ModuleCall) -> None:
        self._stack.append(_Seen(call.path, call.module))
        self._calls[call.path, self._times[call.path]] = self._stack[-1]
        self._times[call.path] += 1
        self._note("input", 0, call.tensors)

    def leave(self, module: nn.Module, output: Any) -> Any:
        found = list(leaves(output))
        self._note("output", 0, found)
        path = self._stack[-1].path
        self._pop()
        if self._stack:
            self._note(path, self._stack[-1].next_of(path), found)
        return output

    def called(self, call: FunctionCall) -> None:
        name = operation(call.func)
        time = self._stack[-1].next_of(name)
        self._note(name, time, call.made or [((), tensor) for tensor in call.written])
        where = f"{self._stack[-1].path}:{name}" + (f"_{time}" if time else "")
        for tensor in call.written:
            self.writes.add(Write(self._time, storage_of(tensor), where))

    def _note(self, name: str, time: int, found: list[tuple[Path, Tensor]]) -> None:
        now = self._tick()
        for path, tensor in found:
            self._kept.append(tensor)
            self._stack[-1].seen[name, time, path] = storage_of(tensor), now


def keys_of(graph: fx.Graph) -> dict[fx.Node, Key]:
    """Return the keys of a recorded scope's nodes, under which its pass in train mode has them."""
    counts: Counter[str] = Counter()
    keys: dict[fx.Node, Key] = {}
    for node in graph.nodes:
        if "leaf" in node.meta and node.args[0] in keys:
            name, time, _ = keys[node.args[0]]
            keys[node] = (name, time, node.meta["leaf"])
        elif node.op in {"call_function", "call_module"}:
            name = node.target if node.op == "call_module" else operation(node.target)
            keys[node] = (name, counts[name], ())
            counts[name] += 1
    return keys
