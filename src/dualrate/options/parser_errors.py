"""Read what tyro refuses, a box of several lines, and say it in one line of our words."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dualrate.config.ranges import described
from dualrate.options.acting import near_options
from dualrate.system.terminal import did_you_mean

WORDS = re.compile(r"\[.*\]")  # in tyro's messages, what was given
FRAME = "─╭╮╰╯│- "  # of a box; where such letters cannot be shown, the last two alone
CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.")
FEW = re.compile(r"Missing value for argument '(.*)'\. Expected (\d+) values")
UNKNOWN = re.compile(r"Unrecognized options: (.*?)(?:, .*)?")


def raised(stop: SystemExit) -> ValueError | None:
    """The error for which tyro stopped: as a dataclass raised it, or in our words for text that fits no option."""
    cause, unfit = stop.__context__, None
    while cause is not None:
        if isinstance(cause, ValueError):
            *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
            if not frame.f_globals["__name__"].startswith("tyro."):
                return cause
        option: Any = getattr(cause, "arg", None)  # of tyro's own error, whose message shows Python's types
        if getattr(option, "lowered", None) is not None:
            message = str(getattr(cause, "message", "")).splitlines()[0]
            words = WORDS.search(message)
            name = "/".join(option.lowered.name_or_flags)
            unfit = ValueError(f"{name} is {described(option.field.type)}, got {words[0] if words else message}")
        cause = cause.__context__
    return unfit


def printed(box: str, arguments: Sequence[str], prog: str, names: Callable[[], Iterable[str]]) -> ValueError | None:
    """The error that tyro printed before it stopped; None where it printed none.

    names: gives all options of the command
    """
    rows = [row.strip("│ ") for row in box.splitlines() if row.strip(FRAME)]
    end = next((i for i, row in enumerate(rows) if row.startswith("For full helptext")), len(rows))
    message = " ".join(rows[1:end])  # the first is a title
    helps = f"`{prog} --help`"
    if choice := CHOICE.fullmatch(message):
        value, name, choices = choice.groups()
        allowed = sorted(set(re.findall("'(.*?)'", choices)), key=lambda word: (word == "None", word))
        *most, last = allowed
        either = f"{', '.join(most)} or {last}" if most else last
        return ValueError(f"{name} is {either}, got {value!r}{did_you_mean(value, allowed)}")
    if few := FEW.match(message):
        name, count = few[1], int(few[2])
        takes = "a value, and none follows" if count == 1 else f"{count} values, and fewer follow"
        return ValueError(f"{name} takes {takes}: {helps} says which")
    if unknown := UNKNOWN.fullmatch(rows[1] if rows[1:] else ""):
        word = unknown[1]
        if word.startswith("--"):
            name = word.partition("=")[0]
            near = "".join(f" (did you mean {option}?)" for option in near_options(name, list(names()))[:1])
            return ValueError(f"there is no option {name}{near}: {helps} lists them")
        switch = next((each.partition("=")[0] for each in arguments if each.endswith(f"={word}")), None)
        says = f"no option takes {word!r}" if switch is None else f"{switch} takes no value, got {word!r}"
        return ValueError(f"{says}: {helps} lists them")
    return ValueError(message) if message else None
