"""Texts for a terminal, without the characters by which a name would write elsewhere than in its line."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable

# all but line feeds, tabs, and a carriage return where a progress bar begins or ends; and what turns the reading order
CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|(?s:(?<=.)\r(?=.))")


def clean(text: str) -> str:
    r"""A text with its control characters written as \x1b."""
    return CONTROLS.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def one_message(error: Exception) -> str:
    r"""The text of an error. A line feed is written as \n but before an indent, so that no name begins a message."""
    return re.sub("\n(?! )", r"\\n", str(error))


def one_line(text: str) -> str:
    """A text in a line: what begins another one is a space."""
    return " ".join(text.splitlines())


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of the names, as a question to put after one that is none of them; empty where none is near."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def clean_streams() -> None:
    """Have standard output and error write all texts clean, whoever prints them."""
    os.environ["PYTHON_COLORS"] = "0"  # of tracebacks, from Python 3.13 on
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream.write, Clean):
            stream.write = Clean(stream.write)  # pyright: ignore[reportAttributeAccessIssue]


class Clean:
    """Writes texts clean."""

    def __init__(self, write: Callable[[str], int]) -> None:
        self.write = write

    def __call__(self, text: str) -> int:
        return self.write(clean(text))
