"""Write a graph module as a file of readable Python."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from placement_rules._torch import buffers_of, parameters_of, unsaved_buffers_of

from .._config import VCRegConfig
from .._live import LiveSite
from .._version import __version__
from ._constructor import constructor, reference, source_of
from ._errors import ExportError
from ._node_modules import Demean, VCReg
from ._two_modes import TwoModeGraphModule

TAKEN = {"Demean", "LiveSite", "Layout", "VCReg", "VCRegConfig", "nn", "place", "torch"}
_WRAPPED = re.compile(r"^torch\.fx[\w.]*\.wrap\([\"'](\w+)[\"']\)\n", re.MULTILINE)


class _Page:
    """The parts of the file while it is written."""

    def __init__(self) -> None:
        self.imports = {
            "import torch",
            "from torch import nn",
            "from vcreg_fx import LiveSite, VCRegConfig",
            "from vcreg_fx.export import Demean, VCReg, place",
            "from placement_rules import Layout",
        }
        self.configs: dict[str, str] = {}  # the call that makes one → its name
        self.wraps: dict[str, None] = {}  # functions that torch.fx is not to look into
        self.body: list[str] = []


def write_code(module: fx.GraphModule, name: str) -> str:
    """Return the source of a class that does what a graph module does, without its weights.

    **Arguments:**

    - `module`: the graph module; its modules and parameters keep their paths.
    - `name`: the name of the class.

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
    configs = [f"{key} = {call}" for call, key in page.configs.items()]
    parts = [
        head,
        "\n".join(_sorted_imports(page.imports)),
        "\n\n".join(part for part in ("\n".join(page.wraps), "\n".join(configs)) if part),
        f'class {name}(nn.Module):\n    """The model as one flat forward."""\n',
    ]
    init = ["def __init__(self) -> None:", "    super().__init__()"]
    init += [f"    {line}" for line in page.body]
    text = "\n\n".join(part for part in parts[:3] if part) + f"\n\n\n{parts[3]}\n"
    text += textwrap.indent("\n".join(init), "    ") + "\n\n"
    return text + textwrap.indent("\n\n".join(methods), "    ") + "\n"


def _sorted_imports(imports: set[str]) -> list[str]:
    own = sorted(
        line for line in imports if re.match(r"(from|import) (vcreg_fx|placement_rules)", line)
    )
    plain = sorted(line for line in imports if line.startswith("import "))
    return [*plain, *sorted(imports - {*own, *plain}), *own]


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
    if value is torch.device:
        return "from torch import device"
    found, line = reference(value, f"The name {name} in the forward")
    if line is None:
        line = f"from torch.nn import {found.removeprefix('nn.')}"
        found = found.removeprefix("nn.")
    if found == name:
        return line
    if "." in found:
        return f"{line}\n{name} = {found}"
    return f"{line} as {name}"
