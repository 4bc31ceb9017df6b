"""The private names of torch stand in one file, and a torch that lacks one is refused by name."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from placement_rules import _torch

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "placement_rules" / "_torch.py"
SOURCES = sorted(
    file for name in ("placement_rules", "vcreg_fx", "docs") for file in (ROOT / name).rglob("*.py")
)
PYTHONS = {"_asdict", "_attributes", "_exit", "_fields", "_getframe"}  # private in looks only
EXECUTORS = {
    "_initargs",
    "_initializer",
    "_max_workers",
    "_mp_context",
    "_processes",
}  # of concurrent.futures


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


TORCHS = {
    *(last for name in _torch.USED if is_private(last := name.rpartition(".")[2])),
    *_torch.FORWARD_HOOKS,
    *_torch.GENERATED,
    _torch.GRAPH,
    "_dynamo_marked_constant",
    "_scale",
}


def own_names(trees: list[ast.AST]) -> set[str]:
    """Return the private names that the sources themselves give to something."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def others_private_names(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and name of each private name that a source takes from another project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in own | PYTHONS | EXECUTORS:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            private_path = re.fullmatch(r"torch(\.\w+)*\._\w+(\.\w+)*", node.value)
            if private_path or node.value in TORCHS - own:
                yield node.lineno, node.value
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            base = "" if isinstance(node, ast.Import) else node.module or ""
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                relative = isinstance(node, ast.ImportFrom) and node.level
                parts = [] if relative else name.split(".")
                if any(is_private(part) for part in parts) and parts[0] != "placement_rules":
                    yield node.lineno, name


def test_private_names_of_torch_stand_in_one_file():
    trees = {file: ast.parse(file.read_text("utf-8")) for file in SOURCES}
    own = own_names([tree for file, tree in trees.items() if file != ALLOWED])
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file, tree in trees.items()
        if file != ALLOWED
        for line, name in others_private_names(tree, own)
    ]
    assert found == [], "private names of torch belong into placement_rules/_torch.py"


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._dynamo import config",
        "from torch import _C",
        "from torch.overrides import _get_current_function_mode_stack",
        "torch._C._current_graph_task_id()",
        "module._call_impl(x)",
        "self._buffers",
        'getattr(module, "_buffers")',
        'logging.getLogger("torch._subclasses.fake_tensor")',
        "from transformers.utils import _private",
        "block._private(x)",
    ],
)
def test_private_names_are_found(source):
    assert list(others_private_names(ast.parse(source), set()))


@pytest.mark.parametrize(
    "source",
    ["self._mine", "from ._mine import x", "sys._getframe(1)", "x.__dict__", "for _ in x: pass"],
)
def test_own_names_are_no_private_names_of_others(source):
    assert not list(others_private_names(ast.parse(source), {"_mine"}))


def test_names_exist_since_the_oldest_torch_that_is_allowed():
    declared = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert declared is not None
    oldest = tuple(int(part) for part in declared[1].split("."))
    with _torch.room_to_compile(1):  # looks for its names when it is used
        pass
    for name, since in _torch.USED.items():
        assert tuple(int(part) for part in since.split(".")) <= oldest, name


@pytest.mark.parametrize(
    ("owner", "name", "shown"),
    [
        (torch._C, "_current_graph_task_id", "torch._C._current_graph_task_id"),
        (torch.overrides, "_get_current_function_mode_stack", "torch.overrides._get_current"),
        (nn.Module, "_call_impl", "torch.nn.Module._call_impl"),
        (torch._C._functorch, "TransformType", "torch._C._functorch.TransformType"),
    ],
)
def test_a_torch_that_lacks_a_name_is_refused_at_import(monkeypatch, owner, name, shown):
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError) as caught:
        runpy.run_path(str(ALLOWED))
    message = str(caught.value)
    assert torch.__version__ in message
    assert shown in message
    assert 'pip install "torch>=' in message


def test_a_torch_whose_modules_are_made_otherwise_is_refused_at_import(monkeypatch):
    made = nn.Module.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        del self.__dict__["_buffers"]

    monkeypatch.setattr(nn.Module, "__init__", init)
    with pytest.raises(ImportError, match=r"torch\.nn\.Module\(\)\._buffers, a private name"):
        runpy.run_path(str(ALLOWED))


@pytest.mark.parametrize("name", sorted(_torch.USED))
def test_the_error_names_what_is_lacking(name):
    with pytest.raises(ImportError, match=re.escape(f"has no {name}_of_late, a private name")):
        _torch.find(f"{name}_of_late", "2.1", "What it is for.")
