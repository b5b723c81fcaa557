"""Options by which a command goes on with a run that it was refused, since other ones were given when it began."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

from dualrate.experiment.experiment import Experiment
from dualrate.runs.store import HISTORY, read_experiment
from dualrate.system.files import read_records
from dualrate.training.resume import OtherRun

FEW = 3  # settings that are named one by one
OF_DATA = ("images", "fingerprint", "digest")  # last names of settings that say what the data hold
RUN = ("out", "device", "nproc", "retries", "log", "eval-every")  # options that are none of the experiment's


def with_way_on(refused: OtherRun, out: Path, experiment: Experiment) -> ValueError:
    """The refusal, in a line with the options to give where they are known."""
    if all(name.rpartition(".")[2] in OF_DATA for name in refused.changes):
        return refused
    free = {f"--{name}" for name in RUN} | {f"--fit.{name.replace('_', '-')}" for name in experiment.fit.free()}
    with suppress(ValueError, OSError):  # of a history that is damaged, or an experiment of other code
        began, fit = read_experiment(out), experiment.fit
        if fit.on_seconds(asdict(began.fit)):  # the message has a way
            return refused
        differs = "iterations" not in began.fit.free() and began.fit.iterations != fit.iterations
        changes = dict.fromkeys((*refused.changes, *["fit.iterations"] * differs))
        way = _by_settings(began, [*changes])
        past = None if way else _by_history(out, free)
        if way := way or past:
            return ValueError(f"{refused.place}: to go on with it, {way}; or choose another --out")
        if past is not None:
            return ValueError(
                f"{refused.place}, made by this very command in an earlier version: {', '.join(changes)} were others "
                "then. Finish it with that version, or choose another --out"
            )
    return refused


def _by_history(out: Path, free: Container[str]) -> str | None:
    """Compare the first command in the run's history with today's. None: it is none of the same recipe."""
    (_, first), *_ = read_records(out / HISTORY) or [("", {})]
    words, now = shlex.split(str(first.get("command", ""))), ["dualrate", *sys.argv[1:]]
    if words[:2] != now[:2]:  # begun in Python, say
        return None
    before, here = options_of(words[2:]), options_of(now[2:])
    add = [word for name, values in before.items() if name not in free and here.get(name) != values
           for word in (name, *values) if word]  # fmt: skip
    drop = [name for name in here if name not in before and name not in free]
    return _in_words(add, drop)


def options_of(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option; those before the first one, and modules to import, by the name of none."""
    name, options = "", dict[str, list[str]]()
    for word in words:
        if re.match("--(?!import$)[A-Za-z]", word):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            options[name] = [value] if equals else []
        else:
            options.setdefault(name, []).append(word)
    return options


def _in_words(add: Sequence[str], drop: Sequence[str] = ()) -> str:
    return " and ".join([f"give {shlex.join(add)}"] * bool(add) + [f"drop {' and '.join(drop)}"] * bool(drop))


def _by_settings(began: Experiment, changes: Sequence[str]) -> str:
    """The settings that differ, as options with their values in the run, where they are few and all have one."""
    words: list[str] = []
    for key in changes:
        value: Any = began
        for name in key.split("."):
            value = getattr(value, name, ...)
        plain = value if isinstance(value, tuple) else (value,)
        if len(changes) > FEW or not all(isinstance(part, bool | int | float | str | NoneType) for part in plain):
            return ""
        words += _as_option(f"--{key.replace('_', '-')}", value)
    return _in_words(words)


def _as_option(name: str, value: Any) -> list[str]:
    """Words that give an option this value."""
    if isinstance(value, bool):
        *place, last = name.removeprefix("--").split(".")
        return ["--" + ".".join([*place, last if value else f"no-{last}"])]
    return [name, *map(str, value if isinstance(value, tuple) else (value,))]
