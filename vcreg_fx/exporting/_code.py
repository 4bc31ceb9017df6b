"""Write a graph module as a file of readable Python, its modules as the calls that make them."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import textwrap
import types
import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from placement_rules._torch import buffers_of, has_hooks, parameters_of, unsaved_buffers_of

from .._errors import ExportError
from .._version import __version__
from ..gradient import VCRegConfig
from ..site import LiveSite
from ._nodes import Demean, VCReg
from ._two_modes import TwoModeGraphModule

TAKEN = {"Demean", "LiveSite", "Layout", "VCReg", "VCRegConfig", "nn", "place", "torch"}
_WRAPPED = re.compile(r"^torch\.fx[\w.]*\.wrap\([\"'](\w+)[\"']\)\n", re.MULTILINE)
_PLAIN = (bool, int, float, str, type(None), torch.dtype)
# Arguments that are kept under another name: as a tensor that is there or not.
_KEPT_AS = {"bias": ("bias", "in_proj_bias"), "add_bias_kv": ("bias_k",)}


class _Page:
    """The parts of the file while it is written."""

    def __init__(self) -> None:
        self.imports = {
            "import torch",
            "from torch import nn",
            "from vcreg_fx import LiveSite, VCRegConfig",
            "from vcreg_fx.exporting import Demean, VCReg, place",
            "from placement_rules import Layout",
        }
        self.configs: dict[str, str] = {}  # the call that makes one → its name
        self.wraps: dict[str, None] = {}  # functions that torch.fx is not to look into
        self.body: list[str] = []


def write_code(module: fx.GraphModule, name: str) -> str:
    """Return the source of a class that does what a graph module does, without its weights.

    Modules and parameters keep their paths.

    **Raises:** `ExportError` if a module or function in it cannot be written as code.
    """
    page = _Page()
    _write_members(page, module)
    methods = _write_methods(page, module)
    count = sum(isinstance(part, VCReg) for part in module.modules())
    head = (
        f'"""{name} with VCReg at {count} site{"s" * (count != 1)}, written by vcreg_fx '
        f"{__version__}.\n\nThe class has no weights of its own; `load` in this package gives them."
        f'\n"""'
    )
    own = {line for line in page.imports if re.match(r"\w+ (vcreg_fx|placement_rules)", line)}
    plain = {line for line in page.imports if line.startswith("import ")}
    imports = [*sorted(plain), *sorted(page.imports - own - plain), *sorted(own)]
    configs = [f"{key} = {call}" for call, key in page.configs.items()]
    parts = [head, "\n".join(imports), "\n".join(page.wraps), "\n".join(configs)]
    init = ["def __init__(self) -> None:", "    super().__init__()"]
    init += [f"    {line}" for line in page.body]
    return (
        "\n\n".join(filter(None, parts))
        + f'\n\n\nclass {name}(nn.Module):\n    """The model as one flat forward."""\n\n'
        + textwrap.indent("\n\n".join(["\n".join(init), *methods]), "    ")
        + "\n"
    )


def _write_members(page: _Page, module: fx.GraphModule) -> None:
    written: dict[LiveSite, str] = {}
    graphs = [module.graph]
    if isinstance(module, TwoModeGraphModule):
        graphs = [module.training_graph, module.evaluation_graph]
    called = {
        str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"
    }
    read = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "get_attr"}
    for path, part in module.named_modules(remove_duplicate=False):
        if path in called:
            _write_module(page, path, part, written)
        elif not any(path.startswith(f"{whole}.") for whole in called):
            own = {**parameters_of(part), **buffers_of(part)}
            for key, tensor in own.items():
                target = f"{path}.{key}".lstrip(".")
                if target in read and tensor is not None:
                    _write_tensor(page, part, key, target, tensor)


def _write_module(page: _Page, path: str, part: nn.Module, sites: dict[LiveSite, str]) -> None:
    if not isinstance(part, (Demean, VCReg)):
        call, line = constructor(part, path)
        page.imports |= {line} if line else set()
        page.body.append(f'place(self, "{path}", {call})')
        return
    site = part.site
    if site not in sites:
        sites[site] = f"site_{len(sites)}"
        page.body.append(f"{sites[site]} = {_site_call(page, site)}")
    extra = ""
    if isinstance(part, Demean) and isinstance(part.running_mean, Tensor):
        extra = f", torch.zeros({site.channels})"
    page.body.append(f"self.{path} = {type(part).__name__}({sites[site]}{extra})")


def _site_call(page: _Page, site: LiveSite) -> str:
    if site.penalize is not None:
        raise ExportError(
            f"{site.name} has a regularizer other than VCReg, which the written code cannot name. "
            "Export with to_graph_module, or insert VCReg."
        )
    if site.config.skip_tokens or site.config.mask not in {"auto", None}:
        raise ExportError(
            f"{site.name} leaves positions out (mask= or skip_tokens=), which the written code "
            "cannot. Export with to_graph_module, or insert VCReg without them."
        )
    if site.positions is not None and (masks := ", ".join(site.positions.axes)):
        warnings.warn(
            f"The written code counts every position as a sample in training, also those that "
            f"{masks} masks, which the model leaves out. To train as the model does, train the "
            "model; mask=None at insert says that every position is to count.",
            stacklevel=2,
        )
    now = {"alpha": site.alpha, "beta": site.beta, "mask": None}  # its graph has no masks to note
    values = {item.name: getattr(site.config, item.name) for item in fields(VCRegConfig)} | now
    listed = "".join(f"    {key}={source_of(value)},\n" for key, value in values.items())
    call = f"VCRegConfig(\n{listed})"
    config = page.configs.setdefault(call, f"CONFIG_{len(page.configs)}")
    return (
        f'LiveSite("{site.name}", "{site.path}", "{site.position}", Layout.parse("{site.layout}"), '
        f"{site.channels}, {config}, clone={site.clones})"
    )


def _write_tensor(page: _Page, owner: nn.Module, key: str, target: str, tensor: Tensor) -> None:
    kind = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    made = f"torch.empty({tuple(tensor.shape)}{kind})"
    if isinstance(tensor, nn.Parameter):
        grad = "" if tensor.requires_grad else ", requires_grad=False"
        made = f"nn.Parameter({made}{grad})"
    unsaved = ", persistent=False" if key in unsaved_buffers_of(owner) else ""
    page.body.append(f'place(self, "{target}", {made}{unsaved})')


def _write_methods(page: _Page, module: fx.GraphModule) -> list[str]:
    if not isinstance(module, TwoModeGraphModule):
        return [_write_graph(page, module.graph)]
    training = _write_graph(page, module.training_graph)
    evaluation = _write_graph(page, module.evaluation_graph)
    names = [str(node.target) for node in module.training_graph.nodes if node.op == "placeholder"]
    listed = ", ".join(names)
    forward = (
        f"def forward(self, {listed}):\n    if self.training:\n"
        f"        return self.forward_in_training({listed})\n"
        f"    return self.forward_in_evaluation({listed})"
    )
    return [
        forward,
        training.replace("def forward(", "def forward_in_training(", 1),
        evaluation.replace("def forward(", "def forward_in_evaluation(", 1),
    ]


def _write_graph(page: _Page, graph: fx.Graph) -> str:
    python = graph.python_code("self")
    source = python.src.strip("\n")
    wrapped = set(_WRAPPED.findall(source))
    source = _WRAPPED.sub("", source).strip("\n")
    for name, value in python.globals.items():
        if not re.search(rf"\b{re.escape(name)}\b", source):
            continue
        short = name
        if inspect.isroutine(value):
            shorter = f"{value.__module__.rpartition('.')[2]}_{value.__name__.lstrip('_')}"
            if not re.search(rf"\b{shorter}\b", source):  # unless a node has this name
                short = shorter
                source = re.sub(rf"\b{re.escape(name)}\b", short, source)
        page.imports.add(_import_line(short, value))
        if name in wrapped:
            page.imports.add("import torch.fx")
            page.wraps[f'torch.fx.wrap("{short}")'] = None
    return "\n".join(line.rstrip() for line in source.splitlines())


def _import_line(name: str, value: Any) -> str:
    if isinstance(value, types.ModuleType):
        same = value.__name__ == name
        return f"import {name}" if same else f"import {value.__name__} as {name}"
    if isinstance(value, float):
        return f"from math import {name}"
    if value is type(None):
        return "from types import NoneType"
    found, line = reference(value, f"The name {name} in the forward")
    if line is None:
        line = f"from torch.nn import {found.removeprefix('nn.')}"
        found = found.removeprefix("nn.")
    if found == name:
        return line
    if "." in found:
        return f"{line}\n{name} = {found}"
    return f"{line} as {name}"


def constructor(module: nn.Module, path: str) -> tuple[str, str | None]:
    """Return the call that makes a module like this one, and the import it needs.

    Its class is of torch.nn, or any that keeps its arguments as attributes. The call is tried: what
    it makes has to have the same parameters and attributes.

    **Returns:** such as ``("nn.Conv2d(3, 64, kernel_size=(7, 7), bias=False)", None)``.

    **Raises:** `ExportError` if no such call can be found, with the reason.
    """
    cls = type(module)
    if any(has_hooks(part) for part in module.modules()):
        raise _refusal(module, path, "it has hooks, which are no part of its code")
    parameters = inspect.signature(cls).parameters
    values = {
        key: value
        for key, value in _arguments(module, path).items()
        if not _is_default(value, parameters[key].default)
    }
    try:
        with torch.device("meta"):
            made = cls(**values)
    except Exception as error:
        raise _refusal(module, path, f"{cls.__name__}({values}) raised {error!r}") from error
    if difference := _difference(made, module):
        raise _refusal(module, path, f"constructed anew it differs in {difference}")
    name, line = reference(cls, path)
    written = [
        source_of(value)
        if parameters[key].default is inspect.Parameter.empty
        else f"{key}={source_of(value)}"
        for key, value in values.items()
    ]
    return f"{name}({', '.join(written)})", line


def reference(target: Any, path: str) -> tuple[str, str | None]:
    """Return how code names a class or function, and the import that this needs.

    **Raises:** `ExportError` if it cannot be imported, as a local class.
    """
    name = target.__qualname__
    if getattr(nn, name, None) is target:
        return f"nn.{name}", None
    try:
        found: Any = importlib.import_module(target.__module__)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ExportError(
            f"{path} needs {target.__module__}.{name}, which cannot be imported: {error}. Define "
            "it at the top of a module that can be."
        ) from error
    if found is not target or target.__module__ == "__main__":
        raise ExportError(
            f"{path} needs {name} of {target.__module__}, which another program cannot import "
            "under this name. Define it at the top of a module that can be imported."
        )
    return name, f"from {target.__module__} import {name.partition('.')[0]}"


def source_of(value: Any) -> str:
    """Return a plain value as Python code."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        inner = ", ".join(source_of(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(source_of(item) for item in value)}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _arguments(module: nn.Module, path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, parameter in inspect.signature(type(module)).parameters.items():
        if key in {"device", "dtype"}:  # the weights bring both
            continue
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        kept = [name for name in _KEPT_AS.get(key, (key,)) if hasattr(module, name)]
        value = getattr(module, kept[0]) if kept else parameter.default
        if key in _KEPT_AS and (value is None or isinstance(value, Tensor)):
            value = value is not None
        if value is parameter.empty or not _is_plain(value):
            raise _refusal(module, path, f"it does not keep its argument {key}")
        values[key] = value
    return values


def _is_default(value: Any, default: Any) -> bool:
    """Whether an argument need not be written; ``(1, 1)`` is how a convolution keeps ``1``."""
    if isinstance(value, tuple) and isinstance(default, int) and value:
        return all(item == default for item in value)
    return type(value) is type(default) and bool(value == default)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _difference(made: nn.Module, module: nn.Module) -> str:
    """Return what differs between two modules; nothing about values, devices and types."""
    if repr(made) != repr(module):
        return f"what it shows: {made!r}"
    theirs = dict(module.named_modules())
    for path, ours in made.named_modules():
        other = theirs.get(path)
        if other is None or type(ours) is not type(other):
            return f"its part {path}"
        for kind, table in (("parameters", parameters_of), ("buffers", buffers_of)):
            shapes = [
                {key: None if t is None else t.shape for key, t in table(one).items()}
                for one in (ours, other)
            ]
            if shapes[0] != shapes[1]:
                return f"its {kind}: {shapes[0]} and {shapes[1]}"
        own = type(ours).__module__.startswith("torch.nn.")  # others may put private marks on it
        for key, value in vars(other).items():
            if key == "training" or (own and key[0] == "_" and key not in vars(ours)):
                continue
            if _is_plain(value) and vars(ours).get(key, ...) != value:
                return f"{key}: {vars(ours).get(key)!r} and {value!r}"
    return ""


def _refusal(module: nn.Module, path: str, reason: str) -> ExportError:
    return ExportError(
        f"{path} ({type(module).__name__}) cannot be written as Python code: {reason}. "
        'format="pt2" and format="onnx" need no code.'
    )
