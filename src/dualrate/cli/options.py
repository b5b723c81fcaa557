"""Options of a command line as a dataclass: tyro's work, but for a value that is refused."""

from __future__ import annotations

import io
import sys
import traceback
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

Command = TypeVar("Command")
NUMBERS = ConstructorRegistry()


@NUMBERS.primitive_rule
def number_or_text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[object] | None:
    """A number as it is written; text that is none stays text, which the field's own range then refuses by name."""
    if info.type not in (int, float):
        return None

    def read(words: list[str]) -> object:
        try:
            return info.type(words[0])
        except ValueError:
            return words[0]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=info.type.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def parse(kind: type[Command], arguments: list[str], prog: str, default: Command | None = None) -> Command:
    """The command that these arguments say. default: its options where they do not.

    Raises ValueError for a value that a dataclass refuses, in its own words; SystemExit where there is no such command
    line, after telling, or after showing help.
    """
    return _parsed(kind, arguments, prog, default)


def parse_known(kind: type[Command], arguments: list[str], prog: str, default: Command) -> tuple[Command, list[str]]:
    """As `parse`, and the arguments that are none of its options."""
    return _parsed(kind, arguments, prog, default, return_unknown_args=True)


def _parsed(kind: type[Command], arguments: list[str], prog: str, default: Command | None, **how: Any) -> Any:
    told, given = io.StringIO(), tyro.MISSING_NONPROP if default is None else default
    config = (tyro.conf.AvoidSubcommands,)
    try:
        with redirect_stderr(told):
            return tyro.cli(kind, args=arguments, prog=prog, default=given, registry=NUMBERS, config=config, **how)
    except SystemExit as stop:
        refusal = _refusal(stop)
        if refusal is None:
            sys.stderr.write(told.getvalue())
            raise
    raise refusal


def _refusal(stop: SystemExit) -> ValueError | None:
    """The error for which tyro stopped, where a dataclass raised it and not tyro."""
    cause = stop.__context__
    while cause is not None:
        if isinstance(cause, ValueError):
            *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
            if not frame.f_globals["__name__"].startswith("tyro."):
                return cause
        cause = cause.__context__
    return None
