"""Errors as one clear line that names the option, and a sentence where someone stops a command."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from placement_rules import (
    ExampleInputsError,
    LayoutError,
    NoSiteError,
    PlacementError,
    RuleSyntaxError,
    UserError,
)

from ._console import say

_UsageError: Any = typer.BadParameter.__bases__[0]  # click's, of which typer has its own copy


class ModelError(UserError):
    """A model that the command line names does not exist or cannot be built."""


class OptionError(UserError):
    """An option cannot be followed.

    **Arguments:**

    - `option`: its name, ``"--device"``.
    - `message`: why, and what can be given instead.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")


@contextmanager
def clear_errors(context: typer.Context | None = None) -> Iterator[None]:
    """Print what a user can do something about as one line to stderr, and exit with 1.

    With the context of a command, the line names the option. A stop by a signal, as by Ctrl-C,
    ends in a sentence that says how to go on, and exits with 128 and the signal's number.
    """
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise  # all is said; or nobody listens, as in `vcreg-fx … | head`
    except (UserError, OSError, ModuleNotFoundError) as error:
        message = " ".join(_message(error).split())
        option = None if context is None else _option(context, error, message)
        hint = ""
        if isinstance(error, ExampleInputsError):
            hint = " Write --input-size 3,224,224 for images, or 3,16,224,224 for clips."
        say(f"Error: {f'{option}: ' if option else ''}{message}{hint}", err=True)
        raise typer.Exit(1) from error
    except (Exception, KeyboardInterrupt) as error:
        if _is_too_large(error):
            say(f"Error: {_too_large(context, error)}", err=True)
            raise typer.Exit(1) from error
        if (stop := _stop(error)) is None:
            raise
        _say_stopped(context)
        raise typer.Exit(128 + getattr(stop, "signal", 2)) from None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f"The package {error.name} is needed for this: {installation(error.name)}"
    return str(error)


_SIZES = ("batch", "input_size", "size")
_TOO_LARGE = re.compile(r"can't allocate memory|out of memory|Storage size calculation overflowed|"
                        r"Overflow when unpacking|too large to convert")  # fmt: skip


def _is_too_large(error: BaseException) -> bool:
    """Return whether memory did not suffice; torch tells so in words, not by a class."""
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OverflowError, TypeError))
        and _TOO_LARGE.search(str(error)) is not None
    )


def _too_large(context: typer.Context | None, error: BaseException) -> str:
    params = [] if context is None else context.command.params
    sizes = [param for param in params if param.name in _SIZES]
    given = [param for param in sizes if _is_given(context, param.name)] if context else []
    options = " or ".join(_name(param) for param in given or sizes)
    advice = f"a smaller {options}" if options else "smaller inputs"
    cause = " ".join(str(error).partition("\n")[0].split())
    start = f"{options}: this" if given else "This"
    return f"{start} needs more memory than there is; take {advice}. It failed with: {cause}"


def installation(package: str) -> str:
    """Return the command that installs a package, with all else that its extra holds."""
    wanted = package.partition(".")[0].lower().replace("_", "-")
    extras: dict[str, set[str]] = {}
    try:
        requirements = importlib.metadata.requires("vcreg-fx") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from a checkout
        requirements = []
    for requirement in requirements:
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", requirement):
            names = re.findall(r"[\w-]+", re.split(r"[<>=!~;]", requirement)[0])
            extras.setdefault(extra[1], set()).update(name.lower() for name in names)
    found = [(len(names), extra) for extra, names in extras.items() if wanted in names]
    # The smallest: extras for development hold those for users.
    return f'pip install "vcreg-fx[{min(found)[1]}]"' if found else f"pip install {wanted}"


# Which option is to blame ---------------------------------------------------------------------


def _option(context: typer.Context, error: Exception, message: str) -> str | None:
    """Return the option that an error is of, if it does not say so itself."""
    named = {str(param.name): _name(param) for param in context.command.params}
    if any(re.search(rf"{name}(?![\w-])", message) for name in named.values() if name[0] == "-"):
        return None
    if isinstance(error, OSError):
        return _of_path(context, named, error.filename)
    for kind, name in (
        (ExampleInputsError, "input_size"),
        (LayoutError, "layout"),
        (NoSiteError, "rule"),
        (RuleSyntaxError, "rule"),
    ):
        if isinstance(error, kind) and name in named:
            return named[name]
    quoted = [
        (repr(text) in message, named[name][0] == "-", len(text), named[name])
        for name, value in context.params.items()
        for text in _parts(value)
        if _is_given(context, name) and re.search(rf"(?<![\w.]){re.escape(text)}(?!\w)", message)
    ]
    if quoted:
        return max(quoted)[-1]
    if type(error) is PlacementError and "rule" in named:
        return named["rule"]
    if isinstance(error, ModelError):
        return next((named[name] for name in ("model", "models", "task") if name in named), None)
    return None


def _name(param: Any) -> str:
    """Return how an option is written in full, or what stands for an argument."""
    return str(param.metavar if param.param_type_name == "argument" else max(param.opts, key=len))


def _parts(value: Any) -> list[str]:
    """Return an option's value, and the values in it, as text."""
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _parts(item)]
    return [text for text in {str(value), *re.split(r"[,;]", str(value))} if text]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _of_path(context: typer.Context, named: dict[str, str], file: object) -> str | None:
    """Return the option whose value is a path, or a folder around it, or its neighbour."""
    if not isinstance(file, (str, Path)):
        return None
    paths = {name: value for name, value in context.params.items() if isinstance(value, Path)}
    tests: Sequence[Any] = (
        lambda path: path == Path(file),
        lambda path: path in Path(file).parents or Path(file) in path.parents,
        lambda path: path.parent == Path(file).parent,  # a file that is to take its place
    )
    for test in tests:
        for name, path in paths.items():
            if test(path):
                return named[name]
    return None


# Commands -------------------------------------------------------------------------------------


def _stop(error: BaseException) -> BaseException | None:
    """Return the interruption that an error is, or that it came of: imports hide it, say."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found


def _say_stopped(context: typer.Context | None) -> None:
    again = getattr(None if context is None else context.command, "again", begin_anew)
    say(f"\nStopped. {again({} if context is None else context.params)}", err=True)


def begin_anew(params: Mapping[str, Any]) -> str:  # noqa: ARG001 - as `go_on`
    """Return how to go on after a stop, given the options: where nothing was kept."""
    return "Nothing was kept; the same command begins anew."


def go_on(params: Mapping[str, Any]) -> str:
    """Return how to go on after a stop, given the options: where finished parts were kept."""
    place = params.get("store") or params.get("output")
    return f"The same command goes on where it was{f': {place}' if place else ''}."


class _Clear:
    """What errors of a command, or of all in a group, are: one line."""

    again = staticmethod(begin_anew)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with clear_errors(ctx):
            return super().invoke(ctx)  # type: ignore[misc]


class Command(_Clear, TyperCommand):
    """A command whose errors are one line."""


class Lasting(Command):
    """A command that keeps what is finished."""

    again = staticmethod(go_on)


class Group(_Clear, TyperGroup):
    """A command with others below it; errors of all of them are one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run it. Mistyped options, too, are one line."""
        if extra.get("standalone_mode") is False:
            return super().main(*args, **extra)
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except _UsageError as error:
            _say_usage(error)
            raise SystemExit(error.exit_code) from error
        raise SystemExit(status or 0)


class LastingGroup(Group):
    """A group that is itself a command that keeps what is finished."""

    again = staticmethod(go_on)


def _say_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    message = " ".join(error.format_message().split())
    of_value = isinstance(error, typer.BadParameter) and error.param is not None
    hint = "" if of_value or error.ctx is None else f" See {error.ctx.command_path} --help."
    if message[-1:] not in ".?!)":
        message += "."
    say(f"Error: {message}{hint}", err=True)
