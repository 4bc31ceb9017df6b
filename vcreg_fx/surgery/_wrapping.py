"""Wrap expressions of a function's syntax tree, and compile it again where it stands.

Nothing but those expressions changes: the new code has the old one's file name and line numbers, so
that debuggers and tracebacks show the user's file.
"""

from __future__ import annotations

import ast
import copy
import functools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from placement_rules import wrapped_by
from placement_rules.recording import SYNTAX_TREES


class SourceError(Exception):
    """A function cannot be rewritten; the message says why, as the end of a sentence."""


class Span(NamedTuple):
    """A stretch of source: lines counted from the function's first one, columns in bytes."""

    line: int
    column: int
    end_line: int
    end_column: int

    @classmethod
    def of(cls, node: ast.expr | ast.AugAssign, first: int) -> Span:
        """Return where a node stands in a function that begins in line `first`."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return cls(
            node.lineno - first, node.col_offset, node.end_lineno - first, node.end_col_offset
        )


@dataclass(frozen=True)
class Wrapping:
    """What becomes of one expression.

    **Attributes:**

    - `span`: where it stands.
    - `sites`: the key of the site that it computes; where it is computed several times in one call
      of the function, the key, or None, of each time.
    - `leaf`: where in its value the site's tensor is.
    """

    span: Span
    sites: tuple[str | None, ...]
    leaf: tuple[int | str, ...] = ()


class Wrapper(ast.NodeTransformer):
    """Wraps the expressions at given places in calls of the marker."""

    def __init__(self, first: int, owner: str, name: str, wrappings: Sequence[Wrapping]) -> None:
        self.waiting = {wrapping.span: wrapping for wrapping in wrappings}
        self.counts = False
        self.texts: dict[Span, tuple[str, str]] = {}
        self._first, self._owner, self._name = first, owner, name

    def visit(self, node: ast.AST) -> Any:
        """Wrap a node, and what is in it."""
        wrapping = None
        if isinstance(node, (ast.expr, ast.AugAssign)):
            wrapping = self.waiting.pop(Span.of(node, self._first), None)
        visited = self.generic_visit(node)
        if wrapping is None:
            return visited
        if isinstance(visited, ast.AugAssign):
            return self._behind(visited, wrapping)
        arguments = self._arguments(wrapping)
        self.texts[wrapping.span] = (
            f"{self._name}({self._owner}, {arguments[0]}, ",
            "".join(f", {argument}" for argument in arguments[1:]) + ")",
        )
        return self._call(visited, arguments)

    def _behind(self, node: ast.AugAssign, wrapping: Wrapping) -> list[ast.stmt]:
        """Put an assignment behind ``x += y``: ``x = vcreg(self, site, x)``."""
        arguments = self._arguments(wrapping)
        value = copy.deepcopy(node.target)
        for part in ast.walk(value):
            if hasattr(part, "ctx"):
                part.ctx = ast.Load()
        assignment = ast.Assign([copy.deepcopy(node.target)], self._call(value, arguments))
        _copy_place(assignment, node)
        target = ast.unparse(node.target)
        after = ", ".join([self._owner, arguments[0], target, *arguments[1:]])
        self.texts[wrapping.span] = ("", f"; {target} = {self._name}({after})")
        return [node, assignment]

    def _arguments(self, wrapping: Wrapping) -> list[str]:
        """Return, as text, what the marker is given beside the module and the value."""
        found = [repr(wrapping.sites[0] if len(wrapping.sites) == 1 else wrapping.sites)]
        if len(wrapping.sites) > 1:
            self.counts = True
            found.append(f"{self._name}_executions")
        elif wrapping.leaf:
            found.append("None")
        if wrapping.leaf:
            found.append(repr(wrapping.leaf))
        return found

    def _call(self, value: Any, arguments: Sequence[str]) -> ast.Call:
        with SYNTAX_TREES:
            site, *rest = (ast.parse(argument, mode="eval").body for argument in arguments)
        function, owner = (ast.Name(name, ast.Load()) for name in (self._name, self._owner))
        call = ast.Call(function, [owner, site, value, *rest], [])
        for part in (function, owner, site, *rest):
            _copy_place(part, value)
        return ast.copy_location(call, value)


def start_counting(definition: Any, name: str) -> None:
    """Let a function begin with a dictionary of how often each wrapped place was passed."""
    body = definition.body
    place = 1 if ast.get_docstring(definition, clean=False) is not None else 0
    target = ast.Name(f"{name}_executions", ast.Store())
    start = ast.Assign([target], ast.Dict([], []))
    _copy_place(start, body[min(place, len(body) - 1)])
    body.insert(place, start)


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Definition = tuple[Any, ...]  # the module, the classes and functions around it, itself


@functools.lru_cache(maxsize=16)
def definitions(filename: str, text: str) -> dict[tuple[str, int], Definition]:
    """Return every ``def`` of a file by name and first line, behind what is around it."""
    try:
        with SYNTAX_TREES:
            tree = ast.parse(text, filename)
    except SyntaxError as error:
        raise SourceError(f"the file {filename} cannot be read: {error.msg}") from error
    found: dict[tuple[str, int], Definition] = {}
    waiting: list[Definition] = [(tree,)]
    while waiting:
        around = waiting.pop()
        node = around[-1]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            found[node.name, first] = around
        waiting.extend((*around, child) for child in _within(node, _DEFINITIONS))
    return found


def _within(node: ast.AST, kinds: tuple[type[ast.stmt], ...]) -> Iterator[Any]:
    """Yield the statements of some kinds in a node, outside of the classes and functions in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, kinds):
            yield child
        elif not isinstance(child, (*_DEFINITIONS, ast.expr)):
            yield from _within(child, kinds)


def compiled(
    around: Sequence[Any], definition: Any, code: types.CodeType, name: str | None
) -> types.CodeType:
    """Compile a function where it stands, and return its code.

    Of the file only what decides how it is compiled is compiled with it: the classes and functions
    around it, and the imports (what is imported is called in another way; some are from
    ``__future__``). The marker's name is a parameter of a function around all of it, and so a free
    variable.
    """
    module, *outers = around
    node, inner = definition, definition
    for outer in reversed(outers):
        made = copy.copy(outer)
        made.decorator_list = []
        if isinstance(outer, ast.ClassDef):
            made.bases, made.keywords, made.body = [], [], [node]
        else:
            made.body = [_Exchange(inner, node).visit(item) for item in copy.copy(outer.body)]
        node, inner = made, outer
    arguments = ast.arguments(
        posonlyargs=[], args=[ast.arg(name)] if name else [], kwonlyargs=[], kw_defaults=[],
        defaults=[],
    )  # fmt: skip
    make: Any = ast.FunctionDef  # whose arguments are others in each version of Python
    maker = make(
        name="vcreg_maker", args=arguments, body=[ast.Global([node.name]), node],
        decorator_list=[], type_params=[],
    )  # fmt: skip
    for part in (maker, maker.body[0], *arguments.args):
        _place(part, code.co_firstlineno)
    tree = ast.Module(body=[*_within(module, (ast.Import, ast.ImportFrom)), maker], type_ignores=[])
    with SYNTAX_TREES:
        compiled = compile(tree, code.co_filename, "exec", dont_inherit=True)
    return next(
        found
        for found in _all_codes(compiled)
        if (found.co_name, found.co_firstlineno) == (code.co_name, code.co_firstlineno)
    )


def _all_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield item
            yield from _all_codes(item)


class _Exchange(ast.NodeTransformer):
    """Puts one definition in the place of another; what is around it is copied, not changed."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        if node is self._old:
            return self._new
        return self.generic_visit(copy.copy(node))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _copy_place(tree: ast.AST, node: ast.AST) -> None:
    """Give a node and all below it another node's place."""
    for part in ast.walk(tree):
        if "lineno" in part._attributes:
            ast.copy_location(part, node)


def _place(node: Any, line: int) -> None:
    node.lineno = node.end_lineno = line
    node.col_offset = node.end_col_offset = 0


def rewrapped(
    name: str, outer: types.FunctionType, old: types.FunctionType, new: types.FunctionType
) -> types.FunctionType:
    """Return a decorated method around another function: its decorators as they are, copied.

    **Raises:** `SourceError` if a decorator keeps the function where it cannot be exchanged.
    """
    if outer is old:
        return new
    wrapped = wrapped_by(outer, name)
    inner = rewrapped(name, wrapped, old, new)
    held = outer.__closure__ or ()
    cells = tuple(types.CellType(inner) if _holds(cell, wrapped) else cell for cell in held)
    if cells == held:
        raise SourceError(
            f"a decorator of {old.__name__} keeps it elsewhere than in a closure, so that the "
            "rewritten one cannot take its place"
        )
    made = types.FunctionType(
        outer.__code__, outer.__globals__, outer.__name__, outer.__defaults__, cells
    )
    copy_function_attributes(outer, made)
    for key, value in vars(outer).items():  # torch.compile's wrappers have more than __wrapped__
        if value is wrapped:
            setattr(made, key, inner)
        elif value == id(outer):
            setattr(made, key, id(made))
    return made


def copy_function_attributes(function: types.FunctionType, made: types.FunctionType) -> None:
    """Give a copied function what its constructor does not take."""
    functools.update_wrapper(made, function)
    made.__dict__.pop("__wrapped__", None)
    made.__dict__.update(function.__dict__)
    made.__kwdefaults__ = function.__kwdefaults__


def _holds(cell: Any, value: object) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # empty
        return False
