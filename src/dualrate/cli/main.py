"""The command line: dualrate train | sample | evaluate | compare | ..., thin calls into the library.

A mistake by the user is one clear line and exit code 2. Reports go to standard output, progress to standard error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

import dualrate
from dualrate.cli.calibrate import Calibrate
from dualrate.cli.compare import Compare
from dualrate.cli.console import close_bars
from dualrate.cli.cost import Cost
from dualrate.cli.data import CodecCheck, DecodeLatents, Encode, EncodeImages, Prepare, Verify, parse_codec, parse_data
from dualrate.cli.demo import Demo
from dualrate.cli.distill import Distill, parse_distill
from dualrate.cli.doctor import Doctor
from dualrate.cli.evaluate import Evaluate, LikelihoodBound
from dualrate.cli.export import Export
from dualrate.cli.plan import PlanSearch
from dualrate.cli.recipe import parse
from dualrate.cli.retrofit import Retrofit, parse_retrofit
from dualrate.cli.sample import Sample
from dualrate.cli.serve import Serve
from dualrate.cli.train import Train, TrainStages, parse_train
from dualrate.config.imports import import_module
from dualrate.data.cache import cache_dir
from dualrate.system.device import keep_freed_memory, memory_shortage, pick_device
from dualrate.system.files import naming
from dualrate.training.distributed import LOST, Lost, check_alone

Command = (
    Sample
    | Evaluate
    | Compare
    | EncodeImages
    | DecodeLatents
    | LikelihoodBound
    | PlanSearch
    | Calibrate
    | Cost
    | Export
    | Serve
    | Demo
    | Doctor
)
COMMANDS: dict[str, type[Command]] = {
    "sample": Sample,
    "evaluate": Evaluate,
    "compare": Compare,
    "encode": EncodeImages,
    "decode": DecodeLatents,
    "bound": LikelihoodBound,
    "plan": PlanSearch,
    "calibrate": Calibrate,
    "cost": Cost,
    "export": Export,
    "serve": Serve,
    "demo": Demo,
    "doctor": Doctor,
}
ALONE = {*COMMANDS, "data", "codec"} - {"doctor"}  # one process each
LESS_MEMORY = {  # where it is short
    **dict.fromkeys(
        ("train", "distill", "retrofit"), "lower --fit.micro-batch or --fit.batch-size, or the networks' channels"
    ),
    **dict.fromkeys(("sample", "evaluate", "bound", "encode", "decode"), "lower --batch-size"),
    "data": "lower --workers; data encode: --batch-size; data prepare: --shard-mib",
    "cost": "lower --batch-size",
    "plan": "lower --grid or --batch-size",
}
USAGE = Path(__file__).with_name("usage.txt")  # a file, so that `dualrate --help` need not load torch


def parsed(
    arguments: list[str],
) -> Train | TrainStages | Distill | Retrofit | Prepare | Encode | Verify | CodecCheck | Command:
    """The command's options. `train` and `distill` take a recipe's name first, whose fields options then override,
    `retrofit` the folder of a model.
    """
    modules, words = _imports(arguments)
    for module in modules:
        import_module(module)
    command, *rest = words or ["--help"]
    if command == "--version":
        python, device = ".".join(map(str, sys.version_info[:3])), pick_device(None)
        print(f"dualrate {dualrate.__version__}, torch {torch.__version__}, Python {python}, {device}")
        raise SystemExit(0)
    if command in ALONE:
        check_alone(command)
    if command == "train":
        return parse_train(rest)
    if command == "distill":
        return parse_distill(rest)
    if command == "retrofit":
        return parse_retrofit(rest)
    if command == "data":
        return parse_data(rest)
    if command == "codec":
        return parse_codec(rest)
    if command in COMMANDS:
        return parse(COMMANDS[command], rest, f"dualrate {command}")
    asked = command in ("-h", "--help")
    usage = USAGE.read_text()
    if asked:
        print(usage, end="")
    else:
        print(f"dualrate: there is no command {command!r}\n\n{usage}", end="", file=sys.stderr)
    raise SystemExit(0 if asked else 2)


def _imports(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What `--import MODULE` names before the command, for methods that runs' files name; and the rest."""
    modules = []
    while arguments[:1] == ["--import"]:
        if len(arguments) < 2:
            raise ValueError("--import is followed by a module, e.g. dualrate --import mypackage.method sample RUN ...")
        modules.append(arguments[1])
        arguments = arguments[2:]
    return modules, arguments


def main() -> None:
    """What the `dualrate` command runs once its threads are settled (dualrate_command.py)."""
    keep_freed_memory()
    try:
        try:
            parsed(sys.argv[1:]).run()
        finally:
            close_bars()
        _flush()  # a reader that has left, or a full disk, is noticed here, not at exit
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        _discard_output()
    except Lost as error:
        print(f"dualrate: {error}", file=sys.stderr)
        raise SystemExit(LOST) from None
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"dualrate: {error}{_of_the_cache(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RuntimeError, MemoryError) as error:
        shortage = memory_shortage(error)
        if shortage is None:  # a fault of the program
            raise
        _, words = _imports(sys.argv[1:])
        way_out = LESS_MEMORY.get(words[0], "use a device, or a machine, with more")
        print(f"dualrate: not enough memory ({shortage}): {way_out}", file=sys.stderr)
        raise SystemExit(2) from None


def _of_the_cache(error: Exception) -> str:
    """What to do where a file of the user's cache, or a folder above it, is not to be had."""
    named, cache = getattr(error, "filename", None), cache_dir().absolute()
    if named is None or not isinstance(error, OSError):
        return ""
    place = Path(os.fsdecode(named)).absolute()
    if place.is_relative_to(cache) or (cache.is_relative_to(place) and not place.is_dir()):
        return f"; the cache is there, {cache}: set DUALRATE_CACHE to a folder that can be written"
    return ""


def _flush() -> None:
    try:
        with naming("standard output"):
            sys.stdout.flush()
    except OSError:
        _discard_output()
        raise


def _discard_output() -> None:
    """What could not be written would be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
