"""Options of a command line as a dataclass, by tyro; and commands that take a recipe's name first.

A value that is refused is refused in the dataclass's own words. --help leaves out the groups within groups, such as
the levels of a network, and names them; --help-all shows all.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dualrate.config.imports import imported
from dualrate.config.ranges import BatchSize, Processes, as_path
from dualrate.config.serial import to_plain
from dualrate.options.acting import Run, acts, refusal
from dualrate.options.parser_errors import printed, raised
from dualrate.system.terminal import did_you_mean

RunDir = Annotated[Positional[Path], arg(metavar="RUN", help="A run, released weights, or a diffusers folder.")]
Device = Annotated[str | None, arg(help="cpu, cuda, ...; a GPU if there is one.")]
AtATime = Annotated[BatchSize, arg(help="Images per batch; fewer need less memory.")]
Nproc = Annotated[
    Processes,
    arg(help="Processes that share the work, as torchrun starts them: each on a GPU of its own if there are GPUs."),
]


class SharedWork:
    """A command whose work the processes that are launched together share out (launchers/team.py)."""

    nproc: int

    def run(self) -> None:
        """Run it, in this process or in the one that leads."""


Prompt = Annotated[
    str | None,
    arg(
        help="A text to make images of, a file with one per line, or a folder that data encode --prompts wrote. "
        "Default: held-out prompts of the training data."
    ),
]
AsJson = Annotated[bool, arg(help="Print the report as JSON.")]
PRIMITIVES = ConstructorRegistry()
ALL = "--help-all"
HELP = ("-h", "--help", ALL)
UNBROKEN = 1 << 16  # columns of a message that is read here
WIDTH = 100  # of help, at most; from 130 on tyro puts groups side by side
GROUP = re.compile(r"(?:╭─)? ([\w.]+) options ")  # the upper edge of a group; without lines where they cannot be drawn

OPTION = re.compile(r"[│ ] (--[\w.-]+)")  # its line; what it means is further in


class NoPath(Exception):
    """No ValueError, which tyro would keep to itself where an option may be something else than a path."""


@PRIMITIVES.primitive_rule
def number_or_path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[object] | None:
    """Numbers in the digits 0 to 9, and paths as `as_path` reads them. Other text stays text: the field's range refuses
    it."""
    kind: Any = info.type
    if kind not in (int, float, Path):
        return None

    def read(words: list[str]) -> object:
        try:
            return as_path(words[0]) if kind is Path else kind(words[0]) if words[0].isascii() else words[0]
        except ValueError as error:
            if kind is Path:
                raise NoPath(str(error)) from error
            return words[0]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: (
            isinstance(value, Path if kind is Path else (int, float)) and not isinstance(value, bool)
        ),
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    kind: type[Any],
    arguments: list[str],
    prog: str,
    default: Any = None,
    *,
    with_rest: bool = False,
    run: Run | None = None,
    beside: Any = None,
) -> Any:
    """The command that these arguments say. default: its options where the arguments do not name them.

    with_rest: also return the arguments that are none of its options; run: that the command makes, to which help and
    refusals keep; beside: a recipe whose options were taken before
    Raises ValueError for a value that a dataclass refuses, in its own words, and for what tyro refuses, in ours;
    SystemExit after help.
    """
    command, _, name = prog.removeprefix("dualrate ").partition(" ")
    if run is not None and (says := refusal(command, arguments, [(name, run)])):
        raise ValueError(says)
    shown, errors = io.StringIO(), io.StringIO()

    def taken(kind: type[Any], default: Any, words: list[str], columns: int) -> Any:
        with redirect_stdout(shown), redirect_stderr(errors), _columns(columns):
            return tyro.cli(
                kind,
                args=words,
                prog=prog,
                default=tyro.MISSING_NONPROP if default is None else default,
                registry=PRIMITIVES,
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=with_rest,
            )

    def idle(option: str) -> bool:
        return run is not None and not acts(command, option, run)

    def options() -> list[str]:
        """All that can act, of the recipe too."""
        for kind_of, value in ((kind, default), *([(type(beside), beside)] if is_dataclass(type(beside)) else [])):
            with suppress(SystemExit):
                taken(kind_of, value, ["--help"], WIDTH)
        lines = map(OPTION.match, shown.getvalue().splitlines())
        return [option[1] for option in lines if option and not idle(option[1])]

    helps, width = not set(HELP).isdisjoint(arguments), min(WIDTH, shutil.get_terminal_size().columns)
    words = ["--help" if argument == ALL else argument for argument in arguments]
    try:
        return taken(kind, default, words, width if helps else UNBROKEN)  # of help `_outer` drops lines
    except NoPath as error:
        refused = ValueError(str(error))
    except SystemExit as stop:
        refused = raised(stop) or printed(errors.getvalue(), arguments, prog, options)
        if refused is None:
            sys.stdout.write(_outer(shown.getvalue(), ALL in arguments, idle))
            raise
    raise refused


@contextmanager
def _columns(count: int) -> Iterator[None]:
    """Have lines broken as for a terminal of this width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})


def _outer(text: str, inner: bool = False, idle: Callable[[str], bool] = lambda option: False) -> str:
    """Help without the groups whose name has a dot, which are listed at the end, unless `inner`, nor what is idle.

    idle: whether an option, or the group of a name, cannot act
    """
    lines, left, without, within = [], [], False, False
    for line in text.splitlines(keepends=True):
        if group := GROUP.match(line):
            none = idle(f"--{group[1]}")
            without = none or ("." in group[1] and not inner)
            left += [".".join(group[1].split(".")[:2])] if without and not none else []
        if option := OPTION.match(line):
            within = idle(option[1])
        elif not line.strip("│ \n") or line.startswith("╰"):
            within = False
        lines += [] if without or within else [line]
        without = without and bool(line.strip()) and not line.startswith("╰")
    if not left:
        return "".join(lines)
    names = ", ".join(f"--{name}.*" for name in dict.fromkeys(left))
    return "".join(lines) + "\n" + textwrap.fill(f"More: {names}. {ALL} shows these too.", 100) + "\n"


Made = TypeVar("Made")
Recipe = TypeVar("Recipe", bound=Callable[..., object])
Command = TypeVar("Command")


def recipe_named(name: str, recipes: Mapping[str, Callable[[], Made]], command: str) -> Callable[[], Made]:
    """The recipe of this name: one of ours, or `package.module:function`, which is imported.

    Raises ValueError for a name that is no recipe's.
    """
    if ":" not in name:
        if name not in recipes:
            near = did_you_mean(name, recipes)
            raise ValueError(f"there is no recipe {name!r}{near}: `dualrate {command}` lists them")
        return recipes[name]
    recipe = imported(name)
    if not callable(recipe):
        raise ValueError(f"{name} is no recipe: expected a function, got {recipe!r}")
    return cast(Callable[[], Made], recipe)


def recipe_result(value: object, expected: type[Made], name: str) -> Made:
    """The value that a recipe returned. Raises ValueError unless it is of the expected type."""
    if not isinstance(value, expected):
        raise ValueError(f"the recipe {name} returns {type(value).__name__}, expected {expected.__name__}")
    return value


def with_own_options(recipe: Recipe, arguments: list[str], command: str, run: Run | None) -> tuple[Recipe, list[str]]:
    """A recipe, and the arguments without its own options: a recipe that is a dataclass has its fields as options.

    run: as far as it is known before the recipe has made it

    --help alone shows these; beside other options it is left for `override`, which knows what the recipe made of them.
    """
    if not is_dataclass(type(recipe)):
        return recipe, arguments
    name, *options = arguments
    help_options = [option for option in options if option in HELP]
    settings = [option for option in options if option not in HELP]
    kind: type[Recipe] = type(recipe)
    of, prog = settings or help_options, f"dualrate {command} {name}"
    configured, rest = parse(kind, of, prog, recipe, with_rest=True, run=run)
    return configured, [name, *rest, *help_options]


def by_the_clock(options: list[str]) -> list[str]:
    """Options with as many iterations as there is time for, where they name seconds and no iterations."""
    names = [option.partition("=")[0].replace("_", "-") for option in options]
    ends = [name.removesuffix("max-seconds") + "iterations" for name in names if name.endswith("fit.max-seconds")]
    return options + [word for end in ends if end not in names for word in (end, "None")]


def override(default: Command, arguments: list[str], command: str, recipe: object = None) -> Command:
    """The command with the options that follow the recipe's name, but the recipe's own, which were taken before."""
    experiment = getattr(default, "experiment", None)
    run, prog = None if experiment is None else to_plain(experiment), f"dualrate {command} {arguments[0]}"
    return parse(type(default), by_the_clock(arguments[1:]), prog, default, run=run, beside=recipe)
