"""The documentation runs: the Python blocks of each page, in order, in one namespace."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
import sys
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("**/*.ipynb"))
LANGUAGES = {"bash", "python", "text"}


class Block(NamedTuple):
    """A fenced block: its language, the line of its first line of code, and the code."""

    language: str
    line: int
    code: str


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page in Markdown."""
    blocks: list[Block] = []
    opened: tuple[str, str] | None = None  # the fence with its indent, and the language
    for number, line in enumerate(text.splitlines(), start=1):
        if opened is None:
            if match := re.match(r"(\s*`{3,})\s*(\S*)", line):
                opened = match[1], match[2]
                blocks.append(Block(match[2], number + 1, ""))
        elif line.rstrip() == opened[0]:
            opened = None
        else:
            indent = len(opened[0]) - len(opened[0].lstrip())
            blocks[-1] = blocks[-1]._replace(code=blocks[-1].code + line[indent:] + "\n")
    if opened is not None:
        raise ValueError(f"The fence above line {blocks[-1].line} is never closed.")
    return blocks


def python_blocks(page: Path) -> list[Block]:
    """Return a page's blocks that are to be executed; of a notebook, the cells of code."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        code = [("".join(cell["source"]) + "\n", cell["cell_type"] == "code") for cell in cells]
        lines = itertools.accumulate((text.count("\n") for text, _ in code), initial=1)
        return [
            Block("python", line, text)
            for line, (text, runs) in zip(lines, code, strict=False)
            if runs
        ]
    blocks = fenced_blocks(page.read_text(encoding="utf-8"))
    return [block for block in blocks if block.language == "python"]


def name_of(page: Path) -> str:
    """Return a page's path as a reader would write it."""
    return page.relative_to(ROOT).as_posix()


def execute(page: Path, name: str, blocks: list[Block], module: types.ModuleType) -> None:
    """Execute a page's blocks in a module; a failure names the page and the line."""
    for block in blocks:
        # Empty lines before the code give every statement its line number on the page.
        source = "\n" * (block.line - 1) + block.code
        try:
            exec(compile(source, str(page), "exec"), vars(module))
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = next(
                (frame.lineno for frame in reversed(frames) if frame.filename == str(page)),
                getattr(error, "lineno", None) or block.line,
            )
            reason = "".join(traceback.format_exception(error))
            pytest.fail(f"{name}, line {line}: {error!r}\n\n{reason}", pytrace=False)


@pytest.fixture
def page_module(tmp_path, monkeypatch):
    """A module for a page's definitions, with an empty folder as working directory."""
    module = types.ModuleType("documentation_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # classes are looked up there
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return module


@pytest.mark.parametrize(
    "page", [page for page in (*PAGES, *NOTEBOOKS) if python_blocks(page)], ids=name_of
)
def test_python_blocks_run(page, page_module):
    execute(page, name_of(page), python_blocks(page), page_module)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_a_notebook_shows_what_came_of_it(notebook):
    """Its outputs are stored, without warnings and without paths of a machine."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert all("/site-packages/" not in json.dumps(output) for output in outputs)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language(page):
    """A block without a language would silently not be executed."""
    unknown = [
        f"{name_of(page)}, line {block.line - 1}: {block.language!r}"
        for block in fenced_blocks(page.read_text(encoding="utf-8"))
        if block.language not in LANGUAGES
    ]
    assert not unknown


@pytest.mark.parametrize("package", ["vcreg_fx", "placement_rules"])
def test_reference_lists_every_public_name(package):
    module = importlib.import_module(package)
    public = {
        name
        for name in getattr(module, "__all__", dir(module))
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    }
    left_out = public - {name for _, name in names_in_reference()}
    assert not left_out, f"docs/reference/index.md leaves out {sorted(left_out)}"


def test_reference_lists_only_public_names():
    modules = {name: importlib.import_module(name) for name in ("vcreg_fx", "placement_rules")}
    modules["rules"] = modules["placement_rules"]
    unknown = [
        f"{module}.{name}"
        for module, name in names_in_reference()
        if not hasattr(modules[module], name)
    ]
    assert not unknown


def directives() -> list[str]:
    """Return the full names that the generated reference describes, one a directive."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return [name for page in pages for name in re.findall(r"(?m)^::: (\S+)$", page.read_text())]


def public_names(module: types.ModuleType) -> set[str]:
    """Return what a module has made public: a package what it passes on, a file what it defines."""
    own = ("vcreg_fx", "placement_rules") if hasattr(module, "__path__") else (module.__name__,)
    return {
        name
        for name, value in ((name, getattr(module, name)) for name in dir(module))
        if not name.startswith("_")
        and name != "annotations"
        and not inspect.ismodule(value)
        and getattr(value, "__module__", own[0]).startswith(own)
    }


MODULES = sorted({name.rpartition(".")[0] for name in directives()})


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_its_entry(name):
    """What one module only passes on has its entry where it is at home."""
    module = importlib.import_module(name)
    described = {entry.rpartition(".")[2] for entry in directives()}
    if name.startswith("vcreg_fx.integrations."):
        pytest.skip("modules of a library, whose names are imported with it")
    assert public_names(module) - described == set()


def test_the_reference_describes_what_there_is():
    found = directives()
    assert len(found) == len(set(found)) > 150
    for entry in found:
        module, _, name = entry.rpartition(".")
        assert hasattr(importlib.import_module(module), name), entry
    rooms = {path.parent.name for path in (ROOT / "vcreg_fx").glob("*/__init__.py")}
    private = {"_shared", "cli", "gradient", "integrations", "site", "surgery"}
    assert {f"vcreg_fx.{room}" for room in rooms - private} <= set(MODULES)


def names_in_reference() -> list[tuple[str, str]]:
    """Return module and name of everything that the reference mentions in code."""
    reference = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`[^`]*`|<code>.*?</code>", reference))
    return re.findall(r"\b(vcreg_fx|placement_rules|rules)\.([A-Za-z]\w*)", code)


PAGE = """\
Text.

```python
a = 1

b = a + 1
```

- In a list:

    ```python
    assert b == 2
    ```

````text
```python
not code
```
````
"""


def test_blocks_are_found_with_their_lines():
    assert fenced_blocks(PAGE) == [
        Block("python", 4, "a = 1\n\nb = a + 1\n"),
        Block("python", 12, "assert b == 2\n"),
        Block("text", 16, "```python\nnot code\n```\n"),
    ]


def test_a_block_that_is_never_closed_is_an_error():
    with pytest.raises(ValueError, match="line 3 is never closed"):
        fenced_blocks("Text.\n```python\na = 1\n")


def test_blocks_of_a_page_share_a_namespace(tmp_path, page_module):
    execute(tmp_path / "page.md", "page.md", fenced_blocks(PAGE)[:2], page_module)
    assert page_module.b == 2


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("a = 1\n\nraise KeyError(a)\n", 12),
        ("def f():\n    return 1 / 0\n\nf()\n", 11),
        ("a = )\n", 10),
    ],
)
def test_a_failure_names_page_and_line(tmp_path, page_module, code, line):
    with pytest.raises(pytest.fail.Exception, match=rf"page\.md, line {line}: "):
        execute(tmp_path / "page.md", "page.md", [Block("python", 10, code)], page_module)
