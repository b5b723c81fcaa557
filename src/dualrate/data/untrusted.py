"""Files that users bring: only regular files are opened, no more is read than is expected, errors name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualrate.config.ranges import as_path
from dualrate.machine.files import check_regular, check_size

MAX_TEXT = 10_000_000  # bytes of a text file, such as a plan
_MAX_MESSAGE = 500  # characters of what a decoder says


def resolved(source: str | Path) -> Path:
    """The place that a source names. Raises ValueError for one that is empty or no path."""
    place = as_path(source, "the data source")
    try:
        return place.resolve()
    except RuntimeError as error:  # a loop of links
        raise ValueError(f"the data source {str(source)!r} is no path ({error})") from error


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a file; raises what `check_regular` raises."""
    check_regular(path, limit)
    with open(path, "rb") as file:
        data = file.read(limit + 1)  # a file may grow, or say that it has no size
    check_size(path, len(data), limit)
    return data


def read_text(path: Path) -> str:
    """The content of a UTF-8 file; raises what `check_regular` raises, and ValueError for a file that is no text."""
    with reading(path, "text"):
        return read_limited(path, MAX_TEXT).decode()


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Around a decoder of untrusted bytes: whatever it raises becomes one line that names the file.

    What the operating system says (OSError with a number: no permission, a read error) stays what it is. All else is
    a ValueError, "PATH cannot be read as KIND: ...", unless it names the file already.
    """
    try:
        yield
    except Exception as error:  # decoders raise about ten kinds of exceptions
        if isinstance(error, OSError) and error.errno:
            if error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        said = one_line(error)
        if isinstance(error, ValueError) and str(path) in said:
            raise
        raise ValueError(f"{path} cannot be read as {kind}: {said}") from error


def one_line(error: Exception) -> str:
    """What an exception says, or else its type, in one line of bounded length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _MAX_MESSAGE else said[:_MAX_MESSAGE] + " ..."


def printable(name: str) -> str:
    r"""A file name in which bytes that are no UTF-8 are written as \xff, so that it can be printed and encoded."""
    return os.fsencode(name).decode(errors="backslashreplace")
