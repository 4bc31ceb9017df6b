"""The private names of torch that this project uses: they stand in this file and in no other.

For each: what it is for, and the oldest release of torch that was seen to have it ("1.13" also
means any before that one). All are looked for when this file is imported, so that a torch that has
lost one is refused with its name, before anything goes wrong without a word.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

NEWEST = "2.14"  # the newest release that the tests were run with
USED: dict[str, str] = {}  # the private names, and since when each exists

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LACKING = object()


def find(name: str, since: str, purpose: str) -> Any:
    """Return what torch has under a private name, and note the name in `USED`.

    **Arguments:**

    - `name`: from ``torch`` on; ``Name()`` stands for an instance.
    - `since`: the oldest release that has it.
    - `purpose`: what it is used for.

    **Raises:** `ImportError` if this torch has no such name.
    """
    found: Any = torch
    path = "torch"
    for part in name.split(".")[1:]:
        path += f".{part}"
        inside = getattr(found, part.removesuffix("()"), _LACKING)
        try:
            found = importlib.import_module(path) if inside is _LACKING else inside
        except ModuleNotFoundError as error:
            raise ImportError(
                f"torch {torch.__version__} has no {path}, a private name that this package uses: "
                f"{purpose.splitlines()[0]} Releases since {since} had it, up to {NEWEST}, the "
                "newest that this version of the package was tested with. Install one of those, "
                f'pip install "torch>={since},<={NEWEST}.99", or a newer version of the package.'
            ) from error
        found = found() if part.endswith("()") else found
    USED[name] = since
    return found


def uses(name: str, since: str) -> Callable[[_Function], _Function]:
    """Say that a function uses a private name, for the purpose that its docstring states."""

    def mark(function: _Function) -> _Function:
        find(name, since, function.__doc__ or "")
        return function

    return mark


# What runs now -----------------------------------------------------------------------------


@uses("torch._C._current_graph_task_id", since="2.1")
def in_backward() -> bool:
    """Whether this runs inside a backward pass, as when checkpointing runs forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@uses("torch.compiler._is_exporting_flag", since="2.7")
def is_exporting() -> bool:
    """Whether torch.export runs this.

    `torch.compiler.is_exporting` returns this value, but code that torch.compile compiles always
    found it true in 2.8 and 2.9.
    """
    return bool(torch.compiler._is_exporting_flag)


@uses("torch._C._current_graph_task_id", since="2.1")
def graph_task() -> int:
    """Tell the backward pass that runs in this thread from others; -1 outside of one."""
    return int(torch._C._current_graph_task_id())


@uses("torch._C._will_engine_execute_node", since="2.0")
def takes_part(node: Any) -> bool:
    """Whether the backward pass that runs in this thread goes, or went, through a node."""
    return bool(torch._C._will_engine_execute_node(node))


@uses("torch._C._get_tracing_state", since="1.13")
def in_jit_trace() -> bool:
    """Whether torch.jit.trace runs this, which loses gradients that are injected."""
    return torch._C._get_tracing_state() is not None


@uses("torch._C._autograd._top_saved_tensors_default_hooks", since="2.8")
def has_saved_tensor_hooks() -> bool:
    """Whether hooks are set for what autograd keeps, as non-reentrant checkpointing does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


@uses("torch._C._functorch.peek_interpreter_stack", since="2.0")
def under_func_transform() -> bool:
    """Whether torch.func runs this; it always differentiates with create_graph=True."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


@uses("torch._C._functorch.get_interpreter_stack", since="2.3")
@uses("torch._C._functorch.TransformType", since="2.0")
def under_vmap() -> bool:
    """Whether torch.func.vmap runs this, where one tensor stands for many."""
    if not under_func_transform():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return torch._C._functorch.TransformType.Vmap in {level.key() for level in levels}


@uses("torch._C._dispatch_keys", since="1.13")
def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for many: ``is_grads_batched`` has a vmap of its own."""
    return "Batched" in repr(torch._C._dispatch_keys(tensor))


# Recording ---------------------------------------------------------------------------------

function_modes = find(
    "torch.overrides._get_current_function_mode_stack",
    "1.13",
    "Lists those entered in this thread, which tell whether a recording is made.",
)
without_functions = find(
    "torch._C.DisableTorchFunction", "1.13", "Keeps a call from being recorded (a context)."
)
tree_map = find(
    "torch.utils._pytree.tree_map", "1.13", "Changes every leaf of nested arguments and outputs."
)
tree_leaves = find(
    "torch.utils._pytree.tree_leaves", "2.2", "Lists the leaves of nested arguments and outputs."
)
FakeTensorMode = find(
    "torch._subclasses.fake_tensor.FakeTensorMode", "1.13", "Runs a forward pass without data."
)
FakeTensor = find(
    "torch._subclasses.fake_tensor.FakeTensor", "1.13", "Makes results that are known already."
)
without_dispatch_to_modes = find(
    "torch._C._DisableTorchDispatch", "1.13", "Makes such results on the meta device (a context)."
)
FakeCopyMode = find(
    "torch._subclasses.fake_tensor.FakeCopyMode", "1.13", "Copies a model without its data."
)
FAKE_LOGGER = "torch._subclasses.fake_tensor"  # where torch logs what fails on fake tensors
BASES_OF_CONVOLUTIONS = find(
    "torch.nn.modules.conv._ConvNd", "1.13", "Tells convolutions of any number of axes."
)
BASES_OF_BATCH_NORMS = (
    find("torch.nn.modules.batchnorm._BatchNorm", "1.13", "Tells batch norms."),
    find("torch.nn.modules.batchnorm._LazyNormBase", "1.13", "Tells batch norms without shape."),
)
BASE_OF_INSTANCE_NORMS = find(
    "torch.nn.modules.instancenorm._InstanceNorm", "1.13", "Tells instance norms."
)
MODULE_CALLS = (  # the functions between the call of a module and its forward
    find("torch.nn.Module._wrapped_call_impl", "2.1", "Finds the frame that called a module."),
    find("torch.nn.Module._call_impl", "1.13", "Finds the frame that called a module."),
)


@uses("torch.Tensor._version", since="1.13")
def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to; -1 where that is not counted."""
    return -1 if tensor.is_inference() else int(tensor._version)


@uses("torch.UntypedStorage._cdata", since="2.0")
def storage_of(tensor: Tensor) -> int:
    """Return a number that two live tensors share exactly if they share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # inside torch.vmap, which hides it
        return storage_of(unwrapped(tensor))


@uses("torch._C._functorch.get_unwrapped", since="2.0")
def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor that stands behind one of torch.func."""
    behind: Tensor = torch._C._functorch.get_unwrapped(tensor)
    return behind


@uses("torch.ops.aten.add._qualified_op_name", since="1.13")
def operator_name(packet: object) -> str:
    """Return the full name of an operator of torch's registry, such as ``aten::add``; else ""."""
    return str(getattr(packet, "_qualified_op_name", ""))


# What a module is made of ------------------------------------------------------------------


@uses("torch.nn.Module()._modules", since="1.13")
def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the table of a module's children, which can be changed."""
    return module._modules


@uses("torch.nn.Module()._parameters", since="1.13")
def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the table of a module's own parameters, which can be changed."""
    return module._parameters


@uses("torch.nn.Module()._buffers", since="1.13")
def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the table of a module's own buffers, which can be changed."""
    return module._buffers


@uses("torch.nn.Module()._non_persistent_buffers_set", since="1.13")
def unsaved_buffers_of(module: nn.Module) -> set[str]:
    """Return the names of the buffers that are not saved, which can be changed."""
    return module._non_persistent_buffers_set


def tables_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the tables of a module's children, parameters and buffers."""
    return children_of(module), parameters_of(module), buffers_of(module)


FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # what `forward_hooks_of` reads


@uses("torch.nn.Module()._forward_hooks", since="1.13")
@uses("torch.nn.Module()._forward_pre_hooks", since="1.13")
def forward_hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return the tables of the hooks that run with a module's forward, which can be changed."""
    return module._forward_hooks, module._forward_pre_hooks


@uses("torch.nn.Module()._backward_hooks", since="1.13")
@uses("torch.nn.Module()._backward_pre_hooks", since="2.0")
def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of any kind, which its code does not show."""
    backward = module._backward_hooks, module._backward_pre_hooks
    return any((*forward_hooks_of(module), *backward))


@uses("torch.nn.Module()._compiled_call_impl", since="2.1")
def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return module._compiled_call_impl is not None


GRAPH = "_graph"  # where a `torch.fx.GraphModule` keeps its graph
GENERATED = ("_code", "_lineno_map", "_prologue_start")  # and what it makes from that, if anything


# Compilation and mixed precision -----------------------------------------------------------


COMPILER = "torch._dynamo"  # the module that is imported when torch.compile is first used


def mark_constant(function: Callable[..., Any]) -> None:
    """Do what torch.compiler.assume_constant_result does, without importing the compiler here.

    The attribute exists since 2.0.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def compiled_parts_eager() -> Iterator[None]:
    """Let methods that a model compiles itself run as they were written.

    ``_use_eager_on_nested_compile`` says so to this thread alone, and exists in 2.14. Where it does
    not, compiled functions run eagerly in all threads for the time of a recording.
    """
    if COMPILER not in sys.modules:  # which takes a second to import
        yield
        return
    eval_frame = find(f"{COMPILER}.eval_frame", "2.0", "Runs compiled methods as written.")
    here = getattr(eval_frame, "_use_eager_on_nested_compile", None)
    with torch.compiler.set_stance("force_eager") if here is None else here():
        yield


@contextmanager
def room_to_compile(count: int) -> Iterator[None]:
    """Let the compiler keep so many more compilations of one function; it gives up at the ninth."""
    limit = "recompile_limit"
    config = find(f"{COMPILER}.config", "2.0", "Sets how often a function is compiled again.")
    find(f"{COMPILER}.config.{limit}", "2.7", "Sets how often a function is compiled again.")
    with config.patch({limit: max(getattr(config, limit), count)}):
        yield


def scale_of(scaler: object) -> Tensor | None:
    """Return the scale of a GradScaler as a tensor, which compiled code can read.

    None for other scalers. The attributes exist since 1.13.
    """
    scale: Tensor | None = getattr(scaler, "_scale", None)
    if scale is None and isinstance(scaler, torch.amp.GradScaler):  # off, or not used yet
        first = scaler._init_scale if scaler._enabled else 1.0
        scale = torch.tensor(first, dtype=torch.float64)
    return scale
