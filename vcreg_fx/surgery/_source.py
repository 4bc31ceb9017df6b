"""A function's own source: find the expression of a call in it, and have it wrapped.

The new function has the old one's globals, closure cells and defaults.
"""

from __future__ import annotations

import ast
import builtins
import copy
import dis
import functools
import hashlib
import linecache
import textwrap
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

from placement_rules import operation

from ._wrapping import (
    SourceError,
    Span,
    Wrapper,
    Wrapping,
    compiled,
    copy_function_attributes,
    definitions,
    start_counting,
)

_READING = threading.Lock()  # linecache does not expect several threads
HAS_POSITIONS = hasattr(types.CodeType, "co_positions")  # since Python 3.11
_PYTEST = "@py"  # pytest's rewritten asserts have variables of such names
_OPERATORS: dict[str, type[ast.operator]] = {
    "add": ast.Add, "sub": ast.Sub, "mul": ast.Mult, "truediv": ast.Div, "div": ast.Div,
    "matmul": ast.MatMult, "mod": ast.Mod, "remainder": ast.Mod, "pow": ast.Pow,
    "floordiv": ast.FloorDiv, "floor_divide": ast.FloorDiv,
}  # fmt: skip


_COMPUTING = (
    ast.BinOp, ast.AugAssign, ast.UnaryOp, ast.Compare, ast.Attribute, ast.Subscript, ast.Await,
)  # fmt: skip
_TAKES_ONE = {"FOR_ITER", "LIST_EXTEND", "SET_UPDATE", "DICT_UPDATE", "DICT_MERGE"}


class Source:
    """The source of a function that was written with ``def``.

    **Raises:** `SourceError` if there is none, or it is not what the function was made from.
    """

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function
        code = function.__code__
        with _READING:
            linecache.checkcache(code.co_filename)
            self._lines = linecache.getlines(code.co_filename, function.__globals__)
        self._first = code.co_firstlineno
        if not self._lines:
            raise SourceError(f"{code.co_name} has no source file ({code.co_filename})")
        if code.co_name == "<lambda>":
            raise SourceError("it is a lambda, which cannot be rewritten")
        changed = f"the file of {code.co_name} has changed since it was imported"
        found = definitions(code.co_filename, "".join(self._lines))
        if (code.co_name, self._first) not in found:
            raise SourceError(changed)
        *self._around, self._definition = found[code.co_name, self._first]
        if not _same_code(code, compiled(self._around, self._definition, code, None)):
            raise SourceError(changed)
        self._looked_up: dict[str, bool] = {}

    @functools.cached_property
    def digest(self) -> str:
        """A number that changes with the function's text."""
        return hashlib.sha256(self._text(self._lines).encode()).hexdigest()

    @property
    def owner(self) -> str:
        """The name of the function's first parameter."""
        arguments = self._definition.args
        given = [*arguments.posonlyargs, *arguments.args]
        if not given:
            raise SourceError(f"{self._definition.name} has no parameter for the module itself")
        return str(given[0].arg)

    def span_of(self, code: types.CodeType, instruction: int, name: str) -> Span:
        """Return where the expression stands that an instruction computes.

        **Arguments:**

        - `code`: of the function, or of one written inside it.
        - `instruction`: the offset of a call in it.
        - `name`: the operation called, which tells expressions of one line apart where Python does
          not note columns.

        **Raises:** `SourceError` if there is no one such expression, or its value is thrown away.
        """
        line, nodes = self._at(code, instruction, name)
        if len(nodes) != 1:
            how = "nothing there is an expression" if not nodes else f"{len(nodes)} could be meant"
            raise SourceError(f"the place of {name} in line {line} is ambiguous: {how}")
        (node,) = nodes
        if dis.opname[code.co_code[instruction]] in _TAKES_ONE or self._collects(node):
            raise SourceError(
                f"line {line} computes it in {ast.unparse(node)!r}, whose value is something else"
            )
        if isinstance(node, ast.AugAssign) and not _is_simple(node.target):
            raise SourceError(
                f"line {line} changes {ast.unparse(node.target)!r} in place, which cannot be named "
                "twice"
            )
        if node in self._thrown_away:
            raise SourceError(
                f"the value of {ast.unparse(node)!r} in line {line} is thrown away, so that "
                "nothing can be put in its place"
            )
        if node in self._hidden:
            raise SourceError(f"line {line} is in a function that hides {self.owner}")
        return Span.of(node, self._first)

    def names(self, code: types.CodeType, instruction: int, name: str) -> bool:
        """Whether the expression that an instruction computes is a call by a name, or none."""
        _, nodes = self._at(code, instruction, name)
        return all(_computes(node, name) for node in nodes if isinstance(node, ast.Call))

    def returns(self, code: types.CodeType, instruction: int, name: str) -> bool:
        """Whether what an instruction computes is what the function returns, as it is."""
        _, nodes = self._at(code, instruction, name)
        return len(nodes) == 1 and nodes[0] in self._returned

    def looks_up(self, method: str) -> bool:
        """Whether the function finds a method by the module, or by ``super()``, and only so."""
        if method not in self._looked_up:
            self._looked_up[method] = self._looks_up(method)
        return self._looked_up[method]

    def _looks_up(self, method: str) -> bool:
        ways = set()
        of_module = {self.owner, f"type({self.owner})", f"{self.owner}.__class__"}
        for node in ast.walk(self._definition):
            if isinstance(node, ast.Attribute) and self._mangled(node.attr) == method:
                value = node.value
                by_super = (
                    isinstance(value, ast.Call)
                    and isinstance(value.func, ast.Name)
                    and value.func.id == "super"
                )
                ways.add(by_super or ast.unparse(value) in of_module)
            elif isinstance(node, ast.Name) and node.id == "getattr":
                ways.add(True)
        return ways == {True}

    def rewritten(
        self, wrappings: Sequence[Wrapping], marker: Callable[..., Any]
    ) -> tuple[types.FunctionType, str]:
        """Return the function with expressions wrapped in calls of a marker, and its text.

        The marker is called as ``vcreg(self, site, value, executions, leaf)``, the last two only
        where they are needed.

        **Raises:** `SourceError` if an expression is not where it was.
        """
        function, name = self.function, self._free_name()
        wrapper = Wrapper(self._first, self.owner, name, wrappings)
        definition = wrapper.visit(copy.deepcopy(self._definition))
        if wrapper.waiting:
            raise SourceError(f"the source of {function.__name__} has changed")
        if wrapper.counts:
            start_counting(definition, name)
        ast.fix_missing_locations(definition)
        code = compiled(self._around, definition, function.__code__, name)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells[name] = types.CellType(marker)
        closure = tuple(cells[free] for free in code.co_freevars)
        made = types.FunctionType(
            code, function.__globals__, function.__name__, function.__defaults__, closure
        )
        copy_function_attributes(function, made)
        return made, self._shown(wrapper.texts)

    # ---------------------------------------------------------------------------------------

    def _mangled(self, name: str) -> str:
        """Return an attribute's name as the class around gives it, if it is a private one."""
        classes = [node.name.lstrip("_") for node in self._around if isinstance(node, ast.ClassDef)]
        if not name.startswith("__") or name.endswith("__") or not any(classes[-1:]):
            return name
        return f"_{classes[-1]}{name}"

    def _collects(self, node: ast.AST) -> bool:
        """Whether an expression only takes up what it computes, as ``list(…)`` and ``[*…]`` do."""
        if not isinstance(node, ast.Call):
            return not isinstance(node, _COMPUTING)
        function, code = node.func, self.function.__code__
        own = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
        return (
            isinstance(function, ast.Name)
            and function.id not in own
            and function.id not in self.function.__globals__
            and isinstance(getattr(builtins, function.id, None), type)
        )

    def _at(
        self, code: types.CodeType, instruction: int, name: str
    ) -> tuple[int, list[ast.expr | ast.AugAssign]]:
        if not HAS_POSITIONS:
            line = _line_of(code, instruction)
            kinds = _kinds(dis.opname[code.co_code[instruction]])
            return line, [
                node
                for here in self._expressions.values()
                for node in here
                if isinstance(node, kinds) and line in _lines(node) and _computes(node, name)
            ]
        line, end_line, column, end_column = _positions(code)[instruction // 2]
        if line is None or column is None:
            return line or self._first, []
        found = [
            node
            for node in self._expressions.get((end_line, end_column), ())
            if (node.lineno, node.col_offset) == (line, column) or _begins(node, line, column)
        ]
        return line, found

    @functools.cached_property
    def _expressions(self) -> dict[Any, list[ast.expr | ast.AugAssign]]:
        """What computes a value in the function, by the place where it ends."""
        found: dict[Any, list[ast.expr | ast.AugAssign]] = {}
        for node in ast.walk(self._definition):
            if isinstance(node, ast.AugAssign) or (
                isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", _LOAD), ast.Load)
            ):
                found.setdefault((node.end_lineno, node.end_col_offset), []).append(node)
        return found

    @functools.cached_property
    def _thrown_away(self) -> set[ast.AST]:
        return {node.value for node in ast.walk(self._definition) if isinstance(node, ast.Expr)}

    @functools.cached_property
    def _returned(self) -> set[ast.AST | None]:
        return {
            node.value if isinstance(node, ast.Return) else node.body
            for node in ast.walk(self._definition)
            if isinstance(node, (ast.Return, ast.Lambda))
        }

    @functools.cached_property
    def _hidden(self) -> set[ast.AST]:
        """What stands in a function whose parameter has the name of the module's."""
        return {
            part
            for node in ast.walk(self._definition)
            if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not self._definition
            if self.owner in {argument.arg for argument in _parameters(node.args)}
            for part in ast.walk(node)
        }

    def _free_name(self) -> str:
        used = {node.id for node in ast.walk(self._definition) if isinstance(node, ast.Name)}
        used |= {node.arg for node in ast.walk(self._definition) if isinstance(node, ast.arg)}
        used |= set(self.function.__code__.co_names)
        name = "vcreg"
        while {name, f"{name}_executions"} & used:
            name += "_"
        return name

    def _text(self, lines: Sequence[str]) -> str:
        assert self._definition.end_lineno is not None
        return "".join(lines[self._first - 1 : self._definition.end_lineno])

    def _shown(self, texts: dict[Span, tuple[str, str]]) -> str:
        """Return the function's own text with what the wrapped expressions became."""
        inserted: list[tuple[int, int, int, tuple[int, ...], str]] = []
        for span, (before, after) in texts.items():
            size = (span.end_line - span.line, span.end_column - span.column)
            inserted.append((span.line, span.column, 0, size, before))
            negative = tuple(-number for number in size)
            inserted.append((span.end_line, span.end_column, 1, negative, after))
        lines = [line.encode() for line in self._lines]
        # From the end, so that what is before keeps its place; of two at one place the inner one
        # is nearer to its expression.
        for line, column, _, _, text in sorted(
            inserted, key=lambda item: (-item[0], -item[1], item[2], item[3])
        ):
            index = self._first - 1 + line
            lines[index] = lines[index][:column] + text.encode() + lines[index][column:]
        return textwrap.dedent(self._text([line.decode() for line in lines]))


_LOAD = ast.Load()


def _same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Whether two codes do the same at the same places; pytest's asserts aside."""
    if any(name.startswith(_PYTEST) for name in (*one.co_varnames, *one.co_names)):
        return True
    return bool(_summary(one) == _summary(other))


def _summary(code: types.CodeType) -> Any:
    constants = [
        _summary(item) if isinstance(item, types.CodeType) else (type(item), repr(item))
        for item in code.co_consts
    ]
    places = _positions(code) if HAS_POSITIONS else list(code.co_lines())
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, names, constants, places


@functools.lru_cache(maxsize=256)
def _positions(code: types.CodeType) -> list[Any]:
    return list(code.co_positions())


def _line_of(code: types.CodeType, instruction: int) -> int:
    return next(
        line
        for start, end, line in code.co_lines()
        if start <= instruction < end and line is not None
    )


def _kinds(instruction: str) -> tuple[type[ast.expr | ast.AugAssign], ...]:
    """Return what in the source an instruction that runs an operation can stand for."""
    if instruction.startswith("CALL"):
        return (ast.Call,)
    return (ast.Attribute,) if instruction.startswith("LOAD") else (ast.BinOp, ast.AugAssign)


def _lines(node: ast.expr | ast.AugAssign) -> set[int | None]:
    """Return the lines that Python may note for a node: a method's call has that of its name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return {node.lineno, node.func.end_lineno}
    return {node.lineno}


def _begins(node: ast.AST, line: int, column: int) -> bool:
    """Whether a call of a method begins, for Python, at the method's name.

    So it does in a chain of calls that has a line for each.
    """
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.end_lineno == line
        and node.func.end_col_offset is not None
        and node.func.end_col_offset - len(node.func.attr.encode()) == column
    )


def _computes(node: ast.AST, name: str) -> bool:
    """Whether a node may be the call of an operation."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        return _OPERATORS.get(name) is type(node.op)
    if isinstance(node, ast.Call):
        function = node.func
        called = (
            function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        )
        return name in {operation(called), called}
    return isinstance(node, ast.Attribute) and node.attr == name


def _is_simple(target: ast.AST) -> bool:
    """Whether naming an assignment's target twice has no effect of its own."""
    if isinstance(target, ast.Attribute):
        return _is_simple(target.value)
    if isinstance(target, ast.Subscript):
        index = target.slice.operand if isinstance(target.slice, ast.UnaryOp) else target.slice
        return _is_simple(target.value) and isinstance(index, (ast.Constant, ast.Name))
    return isinstance(target, ast.Name)


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    rest = [item for item in (arguments.vararg, arguments.kwarg) if item is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *rest]
