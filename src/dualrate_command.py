"""The `dualrate` command: answers what needs no torch, settles threads and streams, then runs `dualrate.cli.main`.

Help, and refusals of wrong names of commands, recipes and options, come from a list of them (options/options.json) in a
tenth of a second. All values are the parser's, which comes with torch.

Torch computes in the threads of OpenMP, which reads its settings once, when torch is loaded. So they are made here:

    how many   DUALRATE_THREADS; "auto", or nothing and no OMP_NUM_THREADS: one for every idle processor, of those that
               this process may use, at least one
    waiting    asleep, unless OMP_WAIT_POLICY is set. By default a thread keeps its processor busy while it
               waits, in the way of other programs: on two busy processors, sampling with two threads took 10 to 60
               times as long as with one, and asleep 0.5 to 0.9 times (dev/LOG.md)
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

STAT = Path("/proc/stat")
CLI = Path(__file__).parent / "dualrate" / "cli"
USAGE = CLI / "usage.txt"
HELP = ("-h", "--help", "--help-all")
MARGIN = " " * 6  # of what an option means
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "<microseconds> <of>", or "max <of>"


def settings(environment: Mapping[str, str], idle: int) -> dict[str, str]:
    """Variables to put into the environment. idle: processors for the automatic number.

    Raises ValueError for a number of threads that is none.
    """
    waiting = {"OMP_WAIT_POLICY": environment.get("OMP_WAIT_POLICY", "PASSIVE")}
    threads = environment.get("DUALRATE_THREADS")
    if threads == "auto" or (threads is None and "OMP_NUM_THREADS" not in environment):
        return {**waiting, "DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": str(idle)}
    if threads is None:
        return waiting
    if not (threads.isascii() and threads.isdecimal()) or int(threads) < 1:
        raise ValueError(f"DUALRATE_THREADS is a whole number of at least 1, or auto, got {threads!r}")
    return {**waiting, "OMP_NUM_THREADS": threads, "MKL_DYNAMIC": "FALSE"}  # MKL would cut it down to the cores


def idle_processors(seconds: float = 0.2) -> int:
    """How many of the processors that this process may use are idle in the next `seconds`; at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    idle = _idle(allowed, seconds) if STAT.exists() else len(allowed) - load
    return max(1, min(round(idle), _quota()))


def _idle(processors: Set[int], seconds: float) -> float:
    """The sum of the idle shares of these processors over the next `seconds`."""
    before = ticks(STAT.read_text())
    time.sleep(seconds)
    after = ticks(STAT.read_text())
    shares = []
    for processor in processors & before.keys() & after.keys():
        idle, total = (new - old for new, old in zip(after[processor], before[processor], strict=True))
        shares.append(idle / max(total, 1))
    return sum(shares)


def ticks(stat: str) -> dict[int, tuple[int, int]]:
    """(idle, all) of each processor since the start of the machine, of the text of /proc/stat."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu") and line[3].isdecimal()]
    counts = {int(line[0][3:]): [int(count) for count in line[1:9]] for line in lines}  # guests' are in the users'
    return {processor: (count[3] + count[4], sum(count)) for processor, count in counts.items()}


def _quota() -> int:
    """Processors that the container's share of time comes to, rounded up; very many without a limit."""
    try:
        limit, period = QUOTA.read_text().split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == "max" else math.ceil(int(limit) / int(period))


def settle_streams() -> None:
    """Have standard output and error take whatever is written, so that no result is lost.

    One that was closed (`>&-`) is the null device: else the next file that is opened has its number. A letter that
    the encoding of standard output lacks is escaped, as standard error does by itself.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free: this
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def answer(arguments: Sequence[str]) -> tuple[int, str] | None:
    """Exit code and text for a command line that asks for help, or that names a wrong command, recipe or option, or an
    option that cannot act on its run.

    None: left to the parser, which knows the values too.
    """
    if not arguments or arguments[0] in HELP[:2]:
        return 0, USAGE.read_text()
    if arguments[0].startswith("-"):  # --version, --import
        return None
    from dualrate.options.acting import OPTIONS, refusal
    from dualrate.system.terminal import did_you_mean

    commands, (name, *rest) = json.loads(OPTIONS.read_text()), arguments
    parts = [full for full in commands if full.startswith(f"{name} ")]
    if name not in commands and not parts:
        first = dict.fromkeys(full.partition(" ")[0] for full in commands)
        return 2, f"dualrate: there is no command {name!r}{did_you_mean(name, first)}\n\n{USAGE.read_text()}"
    if rest and f"{name} {rest[0]}" in commands:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in commands:  # one of its parts was meant
        listed = "".join(f"dualrate {part}: {commands[part]['about'].splitlines()[0]}\n" for part in parts)
        listed += f"dualrate {name} COMMAND --help lists the options.\n"
        if not rest or rest[0] in HELP:
            return 0, listed
        meant = did_you_mean(rest[0], (part.partition(" ")[2] for part in parts))
        return 2, f"dualrate {name}: there is no {rest[0]!r}{meant}\n{listed}"
    command = commands[name]
    if "usage" in command and (not rest or rest[0] in HELP):
        return (0 if rest else command["bare"]), command["usage"]
    if "recipes" in command:
        recipe, *rest = rest
        if recipe == "--list" and "list" in command:
            return 0, command["list"]
        if ":" not in recipe and recipe not in command["recipes"]:
            meant = did_you_mean(recipe, command["recipes"])
            return 2, f"dualrate: there is no recipe {recipe!r}{meant}: `dualrate {name}` lists them\n"
        if ":" in recipe or recipe in command["unlisted"]:
            return None
        name = f"{name} {recipe}"
    elif "about" in command and not set(HELP).isdisjoint(rest):
        return 0, _help(name, command, rest)
    if wrong := _wrong(name, rest, command) if "options" in command else []:
        lines = "".join(f"dualrate {name}: {line}\n" for line in wrong)
        return 2, f"{lines}dualrate {name} --help lists all options\n"
    idle = None if "--" in rest else refusal(name, rest)
    return (2, f"dualrate {name}: {idle}\n") if idle else None


def _help(name: str, command: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """The options of a command, and what they mean: those that act on the run among its arguments; without a run, a
    line each, by the runs on which they act.
    """
    from dualrate.options.acting import KINDS, USUAL, acts, named_runs, runs_of

    needed, options, places = command["required"], command["options"], command.get("places", {})
    words = [option if option not in options else f"{option} {options[option].split('  ', 2)[1]}" for option in needed]
    usage = f"usage: dualrate {name} {' '.join([*words, *places, '[options]'])}\n\n"
    runs = dict(named_runs(name, arguments))
    run = next(iter(runs.values()), USUAL.get(name, {}))
    shown = {  # but not the other way of a switch
        option: line.split("  ", 2)[1:]
        for option, line in {**needed, **places, **options}.items()
        if f"--{option.removeprefix('--no-')}" not in options and (not run or acts(name, option, run))
    }
    kinds = {option: None if run else runs_of(name, option) for option in shown}
    if runs or HELP[2] in arguments or not any(runs_of(name, option) for option in options):
        entries = (
            f"  {option} {values}".rstrip()
            + "\n"
            + textwrap.fill(meaning, 100, initial_indent=MARGIN, subsequent_indent=MARGIN)
            for option, (values, meaning) in shown.items()
        )
        return "\n".join([usage + command["about"] + "\n", *entries, ""])
    lines = [usage + command["about"].partition("\n")[0]]
    for kind in (None, *(kind for kind in KINDS if kind in kinds.values())):
        lines.append("\nFor all runs" if kind is None else f"For {kind.called}")
        for option, (values, meaning) in shown.items():
            if kinds[option] is kind:
                start = f"  {option} {values}".ljust(26) + "  "
                first, room = meaning.partition(". ")[0].rstrip("."), 100 - len(start)
                lines.append(start + textwrap.shorten(first, room, placeholder=" ...", break_on_hyphens=False))
    return "\n".join([*lines, "", f"dualrate {name} RUN --help: in full, what acts on RUN. {HELP[2]}: all in full", ""])


def _wrong(name: str, arguments: Sequence[str], command: Mapping[str, Any]) -> list[str]:
    """Which options there are none of, or else what is missing, in words. name: of the command, with its recipe's

    command: in options.json. Of each option and each required argument, which may be a place instead of a name, it has
    the least number of values, their name, and the help, with two spaces in between
    """
    from dualrate.options.acting import near_options, option_name, options_here

    options, required = command["options"], command["required"]
    if "--" in arguments or not set(HELP).isdisjoint(arguments):
        return []
    words = [argument for argument in arguments if re.match("--[A-Za-z]", argument)]
    names = [option_name(word) for word in words]
    if unknown := [i for i, name in enumerate(names) if name not in options]:
        shown = [words[i].partition("=")[0].encode("unicode_escape").decode() for i in unknown]
        here = options_here(name, arguments, command)
        near = ["".join(_listed(options, meant) for meant in near_options(names[i], here)) for i in unknown]
        return [
            f"there is no option {name}{f'; perhaps you meant:{lines}' if lines else ''}"
            for name, lines in zip(shown, near, strict=True)
        ]
    values = sum(options[name][0] != "0" for name, word in zip(names, words, strict=True) if "=" not in word)
    alone = [name for name in required if not name.startswith("--")]
    short = len(arguments) - len(words) - values < len(alone)  # an option may take more words than one
    missing = [_listed(required, name) for name in required if (short if name in alone else name not in names)]
    return [f"missing:{''.join(missing)}"] if missing else []


def _listed(options: Mapping[str, str], name: str) -> str:
    _, values, meaning = options[name].split("  ", 2)
    return f"\n  {' '.join(filter(None, (name, values)))}  {meaning}"


def main() -> None:
    """Entry point of the `dualrate` command."""
    settle_streams()
    if (reply := answer(sys.argv[1:])) is not None:
        code, text = reply
        print(text, end="", file=sys.stderr if code else sys.stdout)
        if code:
            raise SystemExit(code)
        return
    try:
        try:
            os.environ.update(settings(os.environ, idle_processors()))
        except ValueError as error:
            print(f"dualrate: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if sys.argv[1:2] == ["serve"]:  # which people wait for
            print("reading torch and the model: some seconds, or a minute", file=sys.stderr, flush=True)
        gc.disable()  # what is imported stays: visiting it again and again takes a fifth of the start
        from dualrate.cli.main import main as run

        gc.freeze()
        gc.enable()
    except KeyboardInterrupt:  # loading torch takes seconds
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
