"""The command line: dualrate train | sample | evaluate | compare | ..., thin calls into the library.

A mistake by the user is one clear line and exit code 2. Reports go to standard output, progress to standard error.
Help and wrong names are answered before, without torch (dualrate_command.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

import dualrate
from dualrate.cli.acting import refusal
from dualrate.cli.recipe import SharedWork, parse
from dualrate.config.imports import import_module
from dualrate.data.cache import cache_dir
from dualrate.launchers.start import launch
from dualrate.launchers.team import run_shared
from dualrate.system.device import keep_freed_memory, memory_shortage, pick_device
from dualrate.system.files import naming
from dualrate.system.launch import LOST, STOPPED, Lost, check_alone, is_launched
from dualrate.system.terminal import clean_streams, did_you_mean, one_message

COMMANDS = {  # the module of each and its class, or the function that parses what comes first: a recipe or a folder
    "train": "train:parse_train",
    "distill": "distill:parse_distill",
    "retrofit": "train:parse_retrofit",
    "adapt": "train:parse_adapt",
    "sample": "sample:Sample",
    "forecast": "forecast:Forecast",
    "evaluate": "evaluate:Evaluate",
    "compare": "compare:Compare",
    "plan": "plan:Plan",
    "cost": "sample:Cost",
    "data prepare": "data:Prepare",
    "data encode": "data:Encode",
    "data verify": "data:Verify",
    "data codec": "data:CheckCodec",
    "data simulate": "data:Simulate",
    "export": "export:Export",
    "serve": "serve:Serve",
    "doctor": "doctor:Doctor",
    "demo": "demo:Demo",
}


def parsed(arguments: list[str]) -> Any:
    """The command with its options, a dataclass with `run`. Raises ValueError and SystemExit as `parse`.

    `--import MODULE` before the command imports methods that runs' files name.
    """
    while arguments[:1] == ["--import"]:
        if len(arguments) < 2:
            raise ValueError("--import is followed by a module, e.g. dualrate --import mypackage.method sample RUN ...")
        import_module(arguments[1])
        arguments = arguments[2:]
    command, *rest = arguments or [""]
    if command == "--version":
        python, device = ".".join(map(str, sys.version_info[:3])), pick_device(None)
        print(f"dualrate {dualrate.__version__}, torch {torch.__version__}, Python {python}, {device}")
        raise SystemExit(0)
    if rest and f"{command} {rest[0]}" in COMMANDS:
        command, rest = f"{command} {rest[0]}", rest[1:]
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise ValueError(f"there is no command {command!r}{near}: `dualrate --help` lists them")
    kind = command_named(command)
    if not isinstance(kind, type):
        return kind(rest)
    if idle := refusal(command, rest):
        raise ValueError(idle)
    if not issubclass(kind, SharedWork) and command != "doctor":
        check_alone(command)
    return parse(kind, rest, f"dualrate {command}")


def command_named(name: str) -> Callable[..., Any]:
    """The class of a command's options, or the function that parses them, of a module that is imported for it."""
    module, _, member = COMMANDS[name].partition(":")
    return getattr(import_module(f"dualrate.cli.{module}"), member)


def main() -> None:
    """Run the `dualrate` command, once its threads are settled (dualrate_command.py)."""
    keep_freed_memory()
    clean_streams()
    try:
        _run(parsed(sys.argv[1:]))
        try:
            with naming("standard output"):  # a reader that has left, or a full disk, is noticed here, not at exit
                sys.stdout.flush()
        except OSError:
            _discard_output()
            raise
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        raise SystemExit(STOPPED if is_launched() else 130) from None
    except BrokenPipeError:
        _discard_output()
    except (ValueError, OSError, FloatingPointError) as error:
        in_cache = isinstance(error, OSError) and str(cache_dir()) in str(error)
        way_out = "; the cache is there: set DUALRATE_CACHE to a folder that can be written" if in_cache else ""
        print(f"dualrate: {one_message(error)}{way_out}", file=sys.stderr)
        raise SystemExit(LOST if isinstance(error, Lost) else 2) from None
    except ModuleNotFoundError as error:
        if error.name is not None:  # of an import that nothing says a way out of
            raise
        print(f"dualrate: {one_message(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RuntimeError, MemoryError) as error:
        shortage = memory_shortage(error)
        if shortage is None:  # a fault of the program
            raise
        lower = "lower --batch-size, --fit.micro-batch, --grid or --nproc, or use a device with more"
        less = "take a smaller part of the data at a time, or use a machine with more"
        way_out = less if isinstance(error, MemoryError) else lower
        print(f"dualrate: not enough memory ({shortage}): {way_out}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(command: Any) -> None:
    """Run a command, in the processes that it is to have; training starts its own."""
    if isinstance(command, SharedWork):
        launch(command.nproc, 0, ["-m", "dualrate_command", *sys.argv[1:]])
        run_shared(command.run)
    else:
        command.run()


def _discard_output() -> None:
    """Point standard output at the null device: else what could not be written is tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
